"""The state that an optimizer has of weights it has just met: asked from a twin of it.

A twin has an optimizer's class, options and attributes, and none of its parameters, state and
hooks. It steps once, on a few blocks of zeros with a gradient of zero. What it holds of them at
first is what newly grown blocks begin with.
"""

from __future__ import annotations

import inspect
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from sparse_engine.optimizers.trial_step import Copier, trial_step
from sparse_engine.optimizers.wrappers import Path, group_of, tensors_in

State = dict[Path, Tensor]

_CPU = torch.device("cpu")


class _Asked(NamedTuple):
    """What a group's twins have answered, by the form of the weights, while its options last."""

    key: Any
    named: list[Callable[[], Any]]  # references to what the key names by its id
    answers: dict[Any, State]

    def is_of(self, key: Any) -> bool:
        """Return whether a group with this key is answered so."""
        return self.key == key and all(reference() is not None for reference in self.named)


_ASKED: weakref.WeakKeyDictionary[Optimizer, dict[int, _Asked]] = weakref.WeakKeyDictionary()


def fresh_state(optimizer: Any, parameter: Parameter) -> Callable[[int], State]:
    """Return a function of a number of slots of a parameter [Z, BC, BO].

    It returns the state that the optimizer, as it is set now, has of so many that it just met. That
    lies on a CPU unless it depends on a value on the device, which is not waited for. It is empty
    where no twin can be made.
    """
    found = group_of(optimizer, parameter)
    if found is None or not isinstance(optimizer, Optimizer):
        return lambda slots: {}
    number, group = found
    named: list[Callable[[], Any]] = []
    key = _key([group, _plain(vars(optimizer))], named)
    groups = _ASKED.setdefault(optimizer, {})
    if number not in groups or not groups[number].is_of(key):
        groups[number] = _Asked(key, named, {})
    answers = groups[number].answers
    block = (*parameter.shape[1:], parameter.dtype, parameter.device)

    def state(slots: int) -> State:
        if (slots, *block) not in answers:
            answers[(slots, *block)] = _ask(optimizer, group, parameter, slots)
        return answers[(slots, *block)]

    return state


def _key(value: Any, named: list[Callable[[], Any]]) -> Any:
    """Return something hashable that changes with an option."""
    if isinstance(value, Mapping):
        return tuple((str(k), _key(v, named)) for k, v in value.items() if k != "params")
    if isinstance(value, list | tuple):
        return tuple(_key(v, named) for v in value)
    if isinstance(value, Tensor) and value.device == _CPU and value.numel() <= 16:
        return tuple(value.detach().flatten().tolist())
    if value is None or isinstance(value, bool | int | float | complex | str):
        return value
    # Not kept alive: an option may be a method of the optimizer.
    can_die = getattr(type(value), "__weakrefoffset__", 0)
    named.append(weakref.ref(value) if can_die else lambda: value)
    return (id(value), value._version) if isinstance(value, Tensor) else id(value)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: v for name, v in values.items() if isinstance(v, bool | int | float | str)}


def _ask(optimizer: Optimizer, group: dict[str, Any], like: Parameter, slots: int) -> State:
    """Return what the first twin that can step holds of so many slots of zeros."""
    for make in (_twin, _constructed):
        for device in dict.fromkeys((_CPU, like.device)):
            # An unknown optimizer may raise anything; then it is asked another way.
            try:
                state = _answer(make, optimizer, group, _zeros(like, slots, device))
                if device != _CPU:
                    return {path: t.nan_to_num(0, 0, 0) for path, t in state.items()}
                if all(bool(t.cdouble().isfinite().all()) for t in state.values()):
                    return state
            except Exception:
                continue
    return {}


def _zeros(like: Parameter, slots: int, device: torch.device) -> Parameter:
    shape = (slots, *like.shape[1:])
    probe = Parameter(torch.zeros(shape, dtype=like.dtype, device=device))
    probe.grad = torch.zeros_like(probe)
    vars(probe).update(_plain(vars(like)))
    return probe


def _answer(make: Callable, optimizer: Optimizer, group: dict, probe: Parameter) -> State:
    with torch.no_grad(), _Uninitialised() as uninitialised:
        twin = make(optimizer, group, probe, partial(_FirstValues, uninitialised))
        first = {path: t.clone() for path, t in tensors_in(twin.state[probe])}
        trial_step(twin)
        own = twin.state[probe]
        first |= own.first if isinstance(own, _FirstValues) else {}
        return {**{path: t.detach() for path, t in tensors_in(own)}, **first}


def _twin(optimizer: Optimizer, group: dict, probe: Parameter, state: Callable) -> Optimizer:
    kind = type(optimizer)
    twin = object.__new__(kind)
    copier = Copier(optimizer, twin, probe)
    for name, value in vars(optimizer).items():
        if name.startswith("_optimizer_"):
            vars(twin)[name] = OrderedDict()  # hooks
        # A scheduler's or a scaler's own `step` would step the real optimizer.
        elif name not in _MADE_ANEW and not callable(getattr(kind, name, None)):
            vars(twin)[name] = copier.copy(value)
    twin.defaults = {**copier.copy(optimizer.defaults), "differentiable": False}
    twin.param_groups = [{"params": [probe], **_options(copier, group, probe.device)}]
    others = {k: v for k, v in optimizer.state.items() if not isinstance(k, Tensor)}
    twin.state = defaultdict(state, copier.copy(others))
    return twin


_MADE_ANEW = {"state", "param_groups", "defaults", "found_inf", "grad_scale"}


def _constructed(optimizer: Optimizer, group: dict, probe: Parameter, _: Callable) -> Optimizer:
    """Make an optimizer with the options of a group, for classes that set up state when made."""
    kind = type(optimizer)
    options = _options(Copier(optimizer, None, probe), group, probe.device)
    named = inspect.signature(kind.__init__).parameters
    chosen = {k: v for k, v in options.items() if k in named and not isinstance(v, Tensor)}
    twin = kind([probe], **chosen)  # type: ignore[call-arg]
    twin.param_groups[0].update(options)
    return twin


def _options(copier: Copier, group: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a group's options; how a step computes is the plainest there is on the device."""
    options = {name: copier.copy(value) for name, value in group.items() if name != "params"}
    off = ("differentiable", "capturable", "fused") if device == _CPU else ("differentiable",)
    return {**options, **{name: False for name in off if name in options}}


class _FirstValues(dict):
    """The state of a parameter, which keeps a copy of the first value of each of its entries.

    The step that makes an entry also changes it: means decay, squares get an epsilon.
    """

    def __init__(self, uninitialised: _Uninitialised) -> None:
        super().__init__()
        self.first: State = {}
        self._uninitialised = uninitialised

    def __setitem__(self, key: Any, value: Any) -> None:
        if key not in self:
            made = self._uninitialised.made
            for path, t in tensors_in(value, (key,)):
                if not any(t is empty for empty in made):
                    self.first[path] = t.detach().clone()
        super().__setitem__(key, value)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value


class _Uninitialised(TorchFunctionMode):
    """Notes the tensors made without a value, which say nothing until they are written to."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "empty" in getattr(func, "__name__", "") and isinstance(result, Tensor):
            self.made.append(result)
        return result
