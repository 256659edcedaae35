"""Whether a gradient of a parameter has arrived, and whether somebody else has written to it.

Both are known on the host without asking the device. Hooks tell when a backward pass is about to
add to `parameter.grad` and when it has; what others do in between (`zero_grad`, clipping, a
gradient assigned by hand) shows in the object and in its version counter.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from sparse_kernels.transforms import is_batched

NO_PASS = -1  # what torch calls the backward pass where none runs


def current_pass() -> int:
    """Return the number of the backward pass that runs, NO_PASS outside of one.

    A pass within another, as checkpoints with use_reentrant=True start one, has its own number.
    """
    return torch._C._current_graph_task_id()


class Listener(Protocol):
    """Who is told when a pass adds to a gradient."""

    def before_landing(self) -> None:
        """The parameter's gradient of a pass is there; parameter.grad is as it was before."""

    def after_landing(self, is_plain: bool) -> None:
        """parameter.grad has the gradient of the pass. Not called under torch.autograd.grad.

        is_plain: whether it was added as it came, without hooks of others that change it.
        """


class GradientWatch:
    """Tells whether a layer took part in a step: whether its values have a gradient of it."""

    def __init__(self, parameter: Tensor, listener: Listener | None = None) -> None:
        """Watch a leaf tensor until close(); the listener is not kept alive."""
        self.parameter = parameter
        self._listener = None if listener is None else weakref.ref(listener)
        self._handles: list[Any] = []
        self.attach()
        self.forget()

    def attach(self) -> None:
        """Register the hooks, which a frozen parameter cannot have; again does nothing."""
        if self._handles or not self.parameter.requires_grad:
            return
        self._handles = [
            self.parameter.register_hook(_weakly(self, GradientWatch._announce)),
            *self._hooks_after_landing(),
        ]

    def _hooks_after_landing(self) -> list[Any]:
        hook = _weakly(self, type(self).land)
        return [self.parameter.register_post_accumulate_grad_hook(hook)]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __del__(self) -> None:
        self.close()

    def forget(self) -> None:
        """Begin anew: what has arrived so far does not count."""
        self._arrived, self._announced = False, NO_PASS
        self._mark()

    @property
    def took_part(self) -> bool:
        """Whether parameter.grad has a gradient that arrived since the last forget().

        One that torch.autograd.grad returned has arrived when it is written to parameter.grad.
        Zeros that zero_grad(set_to_none=False) leaves there are none.
        """
        if self.parameter.grad is None:
            return False
        returned = self._announced != NO_PASS and self.is_touched
        return self._arrived or self._is_replaced or returned

    @property
    def is_touched(self) -> bool:
        """Whether others have assigned or written to parameter.grad since note() or a pass."""
        grad = self.parameter.grad
        return self._is_replaced or (grad is not None and _version_of(grad) != self._version)

    @property
    def is_landing(self) -> bool:
        """Whether the pass that runs has added to parameter.grad, or is about to."""
        return self._announced != NO_PASS and self._announced == current_pass()

    def note(self) -> None:
        """Take parameter.grad as it is for known."""
        self._arrived = self.took_part
        self._mark()

    def land(self, _: Tensor | None = None) -> None:
        """Note that the gradient of the pass that runs is in parameter.grad; again does nothing."""
        if not self.is_landing:
            return
        self._arrived, self._announced = True, NO_PASS
        if (listener := self._listening()) is not None:
            listener.after_landing(self._is_plain)
        self._mark()

    def _announce(self, gradient: Tensor) -> None:
        if is_batched(gradient):  # of is_grads_batched: returned, never added to parameter.grad
            return
        self._incoming = (gradient.untyped_storage()._cdata, gradient._version)
        if (listener := self._listening()) is not None:
            listener.before_landing()
        self.note()
        self._announced = current_pass()

    def _listening(self) -> Listener | None:
        return None if self._listener is None else self._listener()

    @property
    def _is_replaced(self) -> bool:
        known = None if self._known is None else self._known()
        return self.parameter.grad is not known

    @property
    def _is_plain(self) -> bool:
        """Whether parameter.grad changed since the mark as autograd changes it, and no hook did."""
        grad, hooks = self.parameter.grad, self.parameter._backward_hooks or {}
        if grad is None or not all(hasattr(hook, "only_looks") for hook in hooks.values()):
            return False
        if not self._is_replaced:
            return _version_of(grad) == self._version + 1
        storage, version = self._incoming
        return _version_of(grad) == (version if grad.untyped_storage()._cdata == storage else 0)

    def _mark(self) -> None:
        grad = self.parameter.grad
        self._known = None if grad is None else TensorWeakRef(grad)
        self._version = None if grad is None else _version_of(grad)


def _version_of(grad: Tensor) -> int:
    """Return how often a tensor was written to; one made in inference mode does not count it.

    Of a DTensor: to itself, and to the part that this process holds.
    """
    if grad.is_inference():
        return -1
    part = getattr(grad, "_local_tensor", None)
    return grad._version + (0 if part is None else part._version)


def _weakly(owner: Any, method: Callable[[Any, Tensor], None]) -> Callable[[Tensor], None]:
    """Return a hook that calls a method of its owner without keeping it alive.

    A strong reference would close a circle through autograd, which is never collected.
    """
    reference = weakref.ref(owner)

    def hook(tensor: Tensor) -> None:
        alive = reference()
        if alive is not None:
            method(alive, tensor)

    hook.only_looks = True  # type: ignore[attr-defined]
    return hook
