"""A layer's output as a function of its whole weight: values, and a leaf of zeros on top.

y = op(x, W + L) with L = 0 has the value of op(x, W), and its gradient of L is the dense one. What
stands here gives autograd the L terms alone, of every order: those of the gradient of x, op^T(grad,
L), are zeros that depend on L, so that the backward of a gradient penalty gives L its part.
Whether a dense gradient is computed, and where it goes, depends on where the pass leads.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sparse_kernels.layout import BlockLayout
from sparse_kernels.operators.dense_gradient import dense_weight_grad
from sparse_kernels.transforms import is_batched


class Receiver(Protocol):
    """Who is given dense gradients of passes that do not reach the leaf."""

    layout: BlockLayout

    def receive(self, gradient: Tensor) -> None:
        """Take one, [O, C, R, S] in the dtype of the leaf."""

    def miss(self) -> None:
        """Note that there is one that cannot be given."""


class Observation(NamedTuple):
    """What a use of a layer is and who looks at it, without being kept alive."""

    receiver: weakref.ref[Receiver]
    sizes: Sequence[int]
    geometry: Sequence[Sequence[int]]

    @classmethod
    def of(cls, receiver: Receiver, geometry: Sequence[Sequence[int]]) -> Observation:
        """Return an observation of a convolution if there is a geometry, or of a linear layer."""
        return cls(weakref.ref(receiver), receiver.layout.sizes(), geometry)

    @torch.no_grad()
    def product(self, node: Any, x: Tensor, grad: Tensor) -> Tensor | None:
        """Return the dense weight gradient for the leaf, unless `deliver` says otherwise."""
        if not self._is_wanted(node) or self._is_missed(grad):
            return None
        dense = dense_weight_grad(x, grad, self.sizes, self.geometry)
        return self.deliver(node, dense.to(node.leaf.dtype))

    def deliver(self, node: Any, dense: Tensor) -> Tensor | None:
        """Return a dense gradient for the leaf, or give it to the receiver if not asked for it.

        torch.autograd.grad and backward(inputs=...) pass the leaf by.
        """
        if self._is_missed(dense):
            return None
        if _runs(node, LEAF):
            return dense
        receiver = self.receiver()
        if receiver is not None and _runs(node, VALUES):
            receiver.receive(dense)
        return None

    def _is_missed(self, grad: Tensor) -> bool:
        """Tell the receiver if a gradient is one for a whole batch, and return whether it is."""
        receiver = self.receiver()
        if is_batched(grad) and receiver is not None:
            receiver.miss()
        return is_batched(grad)

    def _is_wanted(self, node: Any) -> bool:
        return self.receiver() is not None and (_runs(node, LEAF) or _runs(node, VALUES))


# Where the inputs of all functions below begin.
LEAF, VALUES = 0, 1


def _runs(node: Any, number: int) -> bool:
    """Return whether the pass that runs goes on to an input of a node."""
    following = node.next_functions[number][0]
    return following is not None and torch._C._will_engine_execute_node(following)


def observe(y: Tensor, x: Tensor, values: Tensor, leaf: Tensor, observation: Observation) -> Tensor:
    """Return y, an operator's output for x, as one that depends on the leaf, too.

    values: a view of those that the operator was given.
    """
    return _Output.apply(leaf, values, y, x, observation)


def observe_weight(dense: Tensor, values: Tensor, leaf: Tensor, observation: Observation) -> Tensor:
    """Return a dense weight [O, C, R, S] as one that depends on the leaf, too."""
    return _Weight.apply(leaf, values, dense, observation)


class _Output(torch.autograd.Function):
    """y + op(x, L)."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, values: Tensor, y: Tensor, x: Tensor, of: Observation):
        ctx.save_for_backward(x)
        # Not saved for backward: hooks that move saved tensors would make a dense leaf of it.
        ctx.leaf, ctx.values, ctx.of = leaf, values, of
        # A view could not be written to by an activation in place.
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (x,) = ctx.saved_tensors
        of_x = None
        if torch.is_grad_enabled() and ctx.needs_input_grad[3]:
            of_x = _InputGradient.apply(ctx.leaf, ctx.values, grad, x, ctx.of)
        return ctx.of.product(ctx, x, grad), None, grad, of_x, None


class _InputGradient(torch.autograd.Function):
    """op^T(grad, L), of the shape of x."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, values: Tensor, grad: Tensor, x: Tensor, of: Observation):
        ctx.save_for_backward(grad)
        ctx.leaf, ctx.values, ctx.of = leaf, values, of
        return x.new_zeros(()).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor):
        (grad,) = ctx.saved_tensors
        of_grad = None
        if torch.is_grad_enabled() and ctx.needs_input_grad[2]:
            zero = grad.new_zeros(()).expand(grad.shape)
            of_grad = _Output.apply(ctx.leaf, ctx.values, zero, ddx, ctx.of)
        return ctx.of.product(ctx, ddx, grad), None, of_grad, None, None


class _Weight(torch.autograd.Function):
    """W + L."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, values: Tensor, dense: Tensor, of: Observation):
        ctx.of = of
        return dense.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        # A copy: it is added to in place, and autograd passes `grad` on.
        return ctx.of.deliver(ctx, grad.detach().clone()), None, grad, None
