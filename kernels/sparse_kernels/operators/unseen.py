"""Uses of a layer whose dense gradient is not taken: those inside a transform (transforms.py).

What torch.func makes gradients of are stand-ins, often for many values at once, and the gradients
are returned to the caller. So nobody observes such a use; but that a gradient of it has been made
is told, lest others count as the whole.
"""

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor

from sparse_kernels.transforms import is_wrapped


class Misser(Protocol):
    """Who is told."""

    def miss(self) -> None:
        """Note that the gradient of the values has, or may get, a part that nobody observes."""


def unseen(values: Tensor, misser: Misser) -> Tensor:
    """Return values for a use that is not observed."""
    if is_wrapped(values):  # the caller is given their gradients, and may write them anywhere
        misser.miss()
    return _Unseen.apply(values, weakref.ref(misser))


class _Unseen(torch.autograd.Function):
    """The identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, misser: weakref.ref[Misser]) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.misser = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        if (misser := ctx.misser()) is not None:
            misser.miss()
        return grad, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return tangent.view_as(tangent)
