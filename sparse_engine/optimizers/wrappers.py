"""Optimizers inside others: those a wrapper steps, and what it keeps of a parameter itself.

A wrapper (Lookahead, SAM, accelerate's AcceleratedOptimizer) may be an Optimizer or any class with
an optimizer among its attributes.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from sparse_engine.errors import InputError

Path = tuple[Any, ...]  # keys and positions that lead to a tensor


def looks_like_optimizer(value: Any) -> bool:
    """Return whether something is an optimizer or wraps one, by its attributes."""
    if isinstance(value, Optimizer):
        return True
    if isinstance(value, type | nn.Module) or not hasattr(type(value), "step"):
        return False
    names = ("param_groups", "optimizer", "base_optimizer")
    own = getattr(value, "__dict__", {})
    return any(name in own or hasattr(type(value), name) for name in names)


def with_wrapped(optimizer: Any) -> list[Any]:
    """Return an optimizer and all those inside it, each once, the innermost last."""
    found: dict[int, Any] = {}
    waiting = [optimizer]
    while waiting:
        one = waiting.pop(0)
        if id(one) not in found:
            found[id(one)] = one
            for value in _other_attributes(one):
                waiting += [v for v in _elements(value) if looks_like_optimizer(v)]
    return list(found.values())


def _other_attributes(optimizer: Any) -> list[Any]:
    """Return what an optimizer has beside what every one of torch has, and beside plain values."""
    own = getattr(optimizer, "__dict__", {})
    known = ("state", "param_groups", "defaults")
    return [
        value
        for name, value in own.items()
        if name not in known
        and not name.startswith("_optimizer_")
        and not isinstance(value, bool | int | float | str)
    ]


def _elements(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list | tuple) else [value]


def group_of(optimizer: Any, parameter: Tensor) -> tuple[int, dict[str, Any]] | None:
    """Return number and options of the group that holds a parameter now, or None."""
    for number, group in enumerate(getattr(optimizer, "param_groups", ())):
        if any(p is parameter for p in group["params"]):
            return number, group
    return None


def tensors_in(
    value: Any, path: Path = (), within: tuple[Any, ...] = ()
) -> Iterator[tuple[Path, Tensor]]:
    """Yield every tensor in a state with its path; tensors made of others are taken apart."""
    if any(value is outer for outer in within):
        return
    within = (*within, value)
    if isinstance(value, Tensor):
        parts = getattr(value, "__tensor_flatten__", None)
        if parts is None or type(value).__name__ == "DTensor":
            yield path, value
        else:
            for name in parts()[0]:
                yield from tensors_in(getattr(value, name), (*path, name), within)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors_in(part, (*path, key), within)
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from tensors_in(part, (*path, number), within)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module | Optimizer):
        yield from tensors_in(vars(value), path, within)


def own_state(optimizer: Any, parameter: Parameter) -> Any:
    """Return what stands for a parameter in an optimizer's `state`, or None."""
    state = getattr(optimizer, "state", None)
    if isinstance(optimizer, Optimizer):
        return state.get(parameter) if isinstance(state, Mapping) else None
    return _entry(state, parameter) if isinstance(state, Mapping) else None


def kept_aside(optimizer: Any, parameter: Parameter) -> list[Tensor]:
    """Return what other attributes than `state` hold of a parameter, such as slow weights.

    They are found in mappings by the parameter or its id, and in lists in the order of the groups,
    nested by group or flat. Parameters that are trained are none of it.
    """
    attributes = [v for v in _other_attributes(optimizer) if isinstance(v, Mapping | list | tuple)]
    if not attributes:
        return []
    # Hand-written wrappers may have no groups of their own.
    parts = with_wrapped(optimizer)
    groups = next((p.param_groups for p in parts if hasattr(p, "param_groups")), [])
    nested = [list(group["params"]) for group in groups]
    trained = {id(p) for group in nested for p in group}
    found = [v for value in attributes for v in _of_parameter(value, nested, parameter)]
    # Other objects may lead to what is of other parameters.
    found = [v for v in found if isinstance(v, Tensor | Mapping | list | tuple)]
    return [state for _, state in tensors_in(found) if id(state) not in trained]


def _of_parameter(
    value: Any, nested: Sequence[Sequence[Tensor]], parameter: Parameter
) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield _entry(value, parameter)
    elif value:
        flat = [p for group in nested for p in group]
        if _is_aligned(value, flat):
            yield _at(value, flat, parameter)
        elif len(value) == len(nested) and all(map(_is_aligned, value, nested)):
            yield from (_at(*pair, parameter) for pair in zip(value, nested))


def _entry(mapping: Mapping[Any, Any], parameter: Parameter) -> Any:
    # Looked up, a parameter would be compared element by element with an equal number, its id.
    for key, value in mapping.items():
        if key is parameter or (type(key) is int and key == id(parameter)):
            return value
    return None


def _is_aligned(values: Any, parameters: Sequence[Tensor]) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == len(parameters)
        and all(isinstance(v, Tensor) and v.shape == p.shape for v, p in zip(values, parameters))
    )


def _at(values: Sequence[Any], parameters: Sequence[Tensor], parameter: Parameter) -> Any:
    return next((v for v, p in zip(values, parameters) if p is parameter), None)


def check_supported(optimizer: Any, parameters: Collection[Tensor] | None = None) -> None:
    """Raise InputError if an optimizer, or one inside it, cannot train weights that change blocks.

    L-BFGS keeps steps and gradients of all weights as flat vectors, whose products belong to the
    blocks of their time: nothing of it can start anew for some blocks.

    Args:
        optimizer: an optimizer or a wrapper.
        parameters: the weights in question; None is whatever it holds.
    """
    for one in with_wrapped(optimizer):
        is_lbfgs = any("lbfgs" in kind.__name__.lower() for kind in type(one).__mro__)
        if is_lbfgs and (parameters is None or any(group_of(one, p) for p in parameters)):
            raise InputError(
                f"{type(one).__name__} cannot train sparse layers: its state mixes the weights of "
                "all blocks, so that exchanged blocks cannot start anew; give their `values` to "
                "another optimizer, such as torch.optim.AdamW"
            )
