"""Optimizers inside others: those a wrapper steps, and what it keeps of a parameter itself.

A wrapper (Lookahead, SAM, accelerate's AcceleratedOptimizer) may be an Optimizer or any class with
an optimizer among its attributes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from sparse_engine.errors import InputError


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
            for value in vars(one).values() if hasattr(one, "__dict__") else ():
                waiting += [v for v in _elements(value) if looks_like_optimizer(v)]
    return list(found.values())


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


def own_state(optimizer: Any, parameter: Parameter) -> Any:
    """Return what stands for a parameter in an optimizer's `state`, or None."""
    state = getattr(optimizer, "state", None)
    if isinstance(optimizer, Optimizer):
        return state.get(parameter) if isinstance(state, Mapping) else None
    return _entry(state, parameter) if isinstance(state, Mapping) else None


def kept_aside(optimizer: Any, parameter: Parameter) -> Iterator[Any]:
    """Yield what other attributes than `state` hold of a parameter, such as slow weights.

    They are found in mappings by the parameter or its id, and in lists in the order of the groups,
    nested by group or flat.
    """
    # Hand-written wrappers may have no groups of their own.
    parts = with_wrapped(optimizer)
    groups = next((p.param_groups for p in parts if hasattr(p, "param_groups")), [])
    nested = [list(group["params"]) for group in groups]
    flat = [p for group in nested for p in group]
    for name, value in vars(optimizer).items() if hasattr(optimizer, "__dict__") else ():
        if name in ("state", "param_groups"):
            continue
        if isinstance(value, Mapping):
            yield _entry(value, parameter)
        elif isinstance(value, list | tuple) and value:
            if _is_aligned(value, flat):
                yield _at(value, flat, parameter)
            elif len(value) == len(nested) and all(map(_is_aligned, value, nested)):
                yield from (_at(*pair, parameter) for pair in zip(value, nested, strict=True))


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
    found = (v for v, p in zip(values, parameters) if p is parameter and v is not p)
    return next(found, None)


def check_supported(optimizer: Any) -> None:
    """Raise InputError if an optimizer, or one inside it, cannot train weights that change blocks.

    L-BFGS keeps steps and gradients of all weights as flat vectors, whose products belong to the
    blocks of their time: nothing of it can start anew for some blocks.
    """
    for one in with_wrapped(optimizer):
        if any("lbfgs" in kind.__name__.lower() for kind in type(one).__mro__):
            raise InputError(
                f"{type(one).__name__} cannot train sparse layers: its state mixes the weights of "
                "all blocks, so that exchanged blocks cannot start anew; give their `values` to "
                "another optimizer, such as torch.optim.AdamW"
            )
