"""Which optimizers train which sparse layers now, and when one of them has stepped."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from sparse_engine.errors import InputError
from sparse_engine.optimizers.reset import reset_slots
from sparse_engine.optimizers.wrappers import check_supported, group_of, with_wrapped

OnStep = Callable[[Optimizer], None]


class _Held(NamedTuple):
    """What an optimizer held of the parameters when its groups had a form."""

    form: Any
    names: list[str]
    steps_itself: bool  # for some of them no optimizer inside it is told of a step


class Owners:
    """The optimizers of some parameters: those given, those inside them, and those noticed.

    An optimizer that is made later and given to nobody (for layers that were frozen until then) is
    noticed when it first steps, by a hook that torch calls after every optimizer's step. The hook
    is there as long as this object. Optimizers that were noticed are not kept alive.

    A step that a CUDA graph replays is not seen: nothing of it is called but its kernels.
    """

    def __init__(
        self, optimizers: Any | Sequence[Any] | None, parameters: Mapping[str, Parameter]
    ) -> None:
        """Look at the optimizers, and watch all steps from now on.

        Args:
            optimizers: one or several optimizers or wrappers of any class; None for none.
            parameters: the values of sparse layers by the layers' names.

        Raises:
            InputError: something is no optimizer, or one that cannot train sparse layers.
        """
        several = isinstance(optimizers, Sequence)
        self._given = list(optimizers) if several else [o for o in (optimizers,) if o is not None]
        self.parameters = dict(parameters)
        """Those whose owners these are, by name."""
        self._names = {id(p): name for name, p in self.parameters.items()}
        self._noticed: list[weakref.ref[Optimizer]] = []
        self._held: weakref.WeakKeyDictionary[Optimizer, _Held] = weakref.WeakKeyDictionary()
        self._on_step: Callable[[], OnStep | None] = lambda: None
        self.steps = 0
        """Steps seen of optimizers that held one of the parameters."""
        for one in self._given:
            _check_optimizer(one)
            check_supported(one, self.parameters.values())
        handle = register_optimizer_step_post_hook(partial(_tell, weakref.ref(self)))
        weakref.finalize(self, handle.remove)

    @property
    def on_step(self) -> OnStep | None:
        """Called with an optimizer that holds one of the parameters after each of its steps.

        Once a step, while the gradients are still there; where a wrapper calls an optimizer, with
        the one that is called. `found_inf`, if the optimizer has it, is above 0 where a GradScaler
        has told a fused step to change nothing. A method does not keep its object alive.
        """
        return self._on_step()

    @on_step.setter
    def on_step(self, call: OnStep | None) -> None:
        is_method = isinstance(call, MethodType)
        self._on_step = weakref.WeakMethod(call) if is_method else lambda: call  # type: ignore

    @property
    def optimizers(self) -> list[Any]:
        """All of them, those inside others included."""
        parts = (part for one in self._outermost() for part in with_wrapped(one))
        return list({id(part): part for part in parts}.values())

    def of(self, parameter: Parameter) -> list[Any]:
        """Return the optimizers whose groups hold a parameter now, without wrappers of them."""
        holders = [one for one in self.optimizers if group_of(one, parameter)]
        held_by = {id(one) for one in holders}
        return [
            one
            for one in holders
            if not any(id(inner) in held_by for inner in with_wrapped(one)[1:])
        ]

    def trained(self) -> set[str]:
        """Return the names of parameters that require a gradient and are held by an optimizer."""
        held = {name for one in self.optimizers for name in self.names_in(one)}
        return {name for name in held if self.parameters[name].requires_grad}

    def names_in(self, optimizer: Any) -> list[str]:
        """Return the names of parameters in an optimizer's own groups now."""
        groups = getattr(optimizer, "param_groups", ())
        held = {id(p) for group in groups for p in group["params"]}
        return [name for number, name in self._names.items() if number in held]

    def reset_slots(
        self, parameter: Parameter, slots: Tensor, unless: Tensor | None = None
    ) -> None:
        """Let some slots of a parameter begin anew in all optimizers that have state of it.

        Arguments as of optimizer_state.reset_slots.
        """
        for one in self._outermost():
            reset_slots(one, parameter, slots, unless)

    def _outermost(self) -> list[Any]:
        noticed = (reference() for reference in self._noticed)
        return [*self._given, *(one for one in noticed if one is not None)]

    def _stepped(self, optimizer: Optimizer) -> None:
        groups = getattr(optimizer, "param_groups", ())
        form = [(id(group["params"]), len(group["params"])) for group in groups]
        held = self._held.get(optimizer)
        if held is None or held.form != form:
            held = self._held[optimizer] = self._look_at(optimizer, form)
        if held.steps_itself and not _is_within_own_step(optimizer):
            self.steps += 1
            call = self.on_step
            if call is not None:
                call(optimizer)

    def _look_at(self, optimizer: Optimizer, form: Any) -> _Held:
        names = self.names_in(optimizer)
        inside = [one for one in with_wrapped(optimizer)[1:] if _tells_of_steps(one)]
        told = {name for one in inside for name in self.names_in(one)}
        if names and not any(optimizer is one for one in self.optimizers):
            check_supported(optimizer, self.parameters.values())
            self._noticed.append(weakref.ref(optimizer, self._noticed.remove))
        return _Held(form, names, not told.issuperset(names))


def _tell(owners: weakref.ref[Owners], optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        # The step is compiled, and this call is not: it is made each time.
        torch._dynamo.graph_break()
    present = owners()
    if present is not None:
        present._stepped(optimizer)


def _check_optimizer(value: Any) -> None:
    if not any(hasattr(one, "param_groups") for one in with_wrapped(value)):
        raise InputError(
            f"expected a torch optimizer or a list of them, found {type(value).__name__}"
        )


def _tells_of_steps(optimizer: Any) -> bool:
    return isinstance(optimizer, Optimizer) and getattr(type(optimizer).step, "hooked", False)


def _is_within_own_step(optimizer: Optimizer) -> bool:
    """Return whether the step that ended was called by a step of the same optimizer.

    The step of a class may call that of the class above it; torch calls the hook after each.
    """
    if sum("step" in vars(kind) for kind in type(optimizer).__mro__) <= 2:
        return False
    frame, calls = sys._getframe(), 0
    hooked = Optimizer.profile_hook_step(lambda self: None).__code__
    while frame is not None:
        calls += frame.f_code is hooked and frame.f_locals.get("self") is optimizer
        frame = frame.f_back  # type: ignore[assignment]
    return calls > 1
