"""A step of an optimizer's twin that disturbs neither optimizer, hooks nor random draws."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, nullcontext
from copy import copy, deepcopy
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from sparse_engine.optimizers.wrappers import looks_like_optimizer


class Copier:
    """Copies of an optimizer's attributes that lead neither back to it nor to its parameters.

    Containers, tensors, random generators and methods are copied; a parameter is replaced by the
    probe, others are left out; what was kept of each parameter is left out as well.
    """

    def __init__(self, optimizer: Optimizer, twin: Optimizer | None, probe: Parameter) -> None:
        """Copy attributes of an optimizer for its twin, which holds only the probe."""
        self._optimizer, self._twin, self._probe = optimizer, twin, probe
        self._owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        # An object at two places stays one; `value` stands beside its copy so that ids stay its.
        self._copies: dict[int, tuple[Any, Any]] = {}

    def copy(self, value: Any) -> Any:
        """Return a copy.

        Raises:
            TypeError: it holds a module or an optimizer, which a step could change.
        """
        if id(value) not in self._copies:
            self._copies[id(value)] = (value, self._copy(value))
        return self._copies[id(value)][1]

    def _copy(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, MutableMapping):
            copies = {k: self.copy(v) for k, v in value.items() if not isinstance(k, Tensor)}
            mapping = copy(value)  # of the same class
            mapping.clear()
            mapping.update(copies)
            return mapping
        if isinstance(value, list | set | frozenset) or type(value) is tuple:
            return type(value)(self.copy(v) for v in self._without_parameters(value))
        if isinstance(value, partial):
            return partial(
                self.copy(value.func), *self.copy(value.args), **self.copy(value.keywords)
            )
        if isinstance(value, MethodType) and value.__self__ is self._optimizer:
            return MethodType(value.__func__, self._twin)
        if isinstance(value, FunctionType):
            for cell in value.__closure__ or ():
                self._check(cell.cell_contents)
            return value
        self._check(value)
        if isinstance(value, torch.Generator):
            return value.clone_state()
        is_random = type(value).__module__.partition(".")[::2] == ("numpy", "random")
        return deepcopy(value) if is_random or isinstance(value, random.Random) else value

    def _check(self, value: Any) -> None:
        is_shared = isinstance(value, nn.Module) or looks_like_optimizer(value)
        if is_shared or id(value) in self._owned:
            raise TypeError(f"a step could change a {type(value).__name__}")

    def _without_parameters(self, values: Any) -> list[Any]:
        """Return the elements of a container: of its parameters one, for the probe."""
        parameters = [v for v in values if id(v) in self._owned]
        return [v for v in values if id(v) not in self._owned] + parameters[:1]

    def _tensor(self, value: Tensor) -> Tensor:
        if id(value) in self._owned:
            return self._probe
        if value.device != self._probe.device and value.is_floating_point():
            # Not to be waited for. A state that depends on it is not finite, and asked again.
            return torch.full_like(value, torch.nan, device=self._probe.device)
        return value.detach().clone()


def trial_step(twin: Optimizer) -> None:
    """Step once, without a hook, compiled code, or a draw from a global random generator."""
    step = type(twin).step
    if getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    _, *arguments = inspect.signature(step).parameters.values()
    needed = [p for p in arguments if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    closures = [lambda: torch.zeros(())][: len(needed)]
    device = twin.param_groups[0]["params"][0].device
    with ExitStack() as stack:
        stack.enter_context(_kept_random_states(device))
        stack.enter_context(_eager())
        # A step that calls that of the class above would run global hooks there.
        if sum("step" in vars(kind) for kind in type(twin).__mro__) > 2:
            stack.enter_context(_without_global_hooks())
        step(twin, *closures)


@contextmanager
def _kept_random_states(device: torch.device) -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])


def _eager() -> Any:
    """Return a context in which compiled functions run as they were written."""
    compiler = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiler else nullcontext()


@contextmanager
def _without_global_hooks() -> Iterator[None]:
    names = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
    hooks = [getattr(torch_optimizer, name, {}) for name in names]
    kept = [dict(registered) for registered in hooks]
    for registered in hooks:
        registered.clear()
    try:
        yield
    finally:
        for registered, before in zip(hooks, kept, strict=True):
            added = dict(registered)
            registered.clear()
            registered.update({**before, **added})
