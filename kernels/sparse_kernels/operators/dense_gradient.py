"""A probe asks backward for the gradient that the dense weight would have, block by block.

Gradient growth (RigL, Evci et al. 2020) needs dense weight gradients on update steps only. The
probe is a leaf tensor of the dense shape that costs no memory (all its strides are 0): the
operator's output is passed through `observe`, whose backward gives the probe the dense gradient;
as soon as autograd has summed it over all uses of the layer, it is reduced to one score a block and
freed, so no more than one layer's dense gradient exists at a time.

That is right for steps of one backward pass; DenseGradientSum is for all others.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels.layout import BlockLayout
from sparse_kernels.operators import reference
from sparse_kernels.operators.unseen import unseen
from sparse_kernels.transforms import is_batched, is_transformed


class DenseGradientProbe:
    """Collects the L1 norm of the dense gradient of every block of one layer."""

    def __init__(
        self,
        layout: BlockLayout,
        values: Tensor,
        memory: float = 1.0,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Watch a layer with `layout` and these values, [Z, BC, BO].

        Every backward multiplies the scores of those before by `memory`, and adds its own, of the
        gradient that `reduce` makes of the dense one: its mean over processes, for example.
        """
        self.layout, self.memory, self._make_scored = layout, memory, reduce
        self.scores: Tensor | None = None
        self._has_missed = False
        self.leaf = values.new_zeros(()).expand(layout.shape).detach().requires_grad_()
        # A strong reference would close a circle through autograd, which is never collected.
        probe = weakref.ref(self)

        def receive(leaf: Tensor) -> None:
            alive = probe()
            if alive is not None:
                alive._receive(leaf.grad)
            leaf.grad = None

        self.leaf.register_post_accumulate_grad_hook(receive)

    @property
    def collected(self) -> Tensor | None:
        """The scores of all that has arrived, [OB * CB * R * S]; None if nothing has.

        None, too, where something came by that is in no score: see miss().
        """
        return None if self._has_missed else self.scores

    def view(self, values: Tensor) -> Tensor:
        """Return the values that an operator should be given, for observe to see its gradient."""
        return unseen(values, self) if is_transformed() else values

    def observe(self, y: Tensor, x: Tensor, values: Tensor, *geometry: Sequence[int]) -> Tensor:
        """Return y, what an operator makes of x and of values that come from view().

        geometry: stride, padding, dilation of a convolution.
        """
        if is_transformed():
            return y
        return _Observe.apply(y, x, self.leaf, self, geometry)

    def observe_weight(self, dense: Tensor, values: Tensor) -> Tensor:
        """Return the dense weight [O, C, R, S] of values that come from view()."""
        return dense if is_transformed() else dense + self.leaf

    def miss(self) -> None:
        """Note that the gradient of the values has a part of which there is no dense gradient."""
        self._has_missed = True

    def add_scores(self, gradient: Tensor) -> None:
        """Add the block norms of a dense gradient [O, C, R, S] to the scores; inf and nan stay."""
        gradient = gradient.float()
        if self._make_scored is not None:
            gradient = self._make_scored(gradient)
        self.scores = self._added(gradient)

    def take(self) -> Tensor | None:
        """Return the dense gradient that is held and begin anew: none is held here."""
        return None

    def close(self) -> None:
        """Leave the layer alone from now on."""

    def _added(self, gradient: Tensor) -> Tensor:
        scores = reference.block_norms(gradient, self.layout.sizes())
        return scores if self.scores is None else self.memory * self.scores + scores

    def _receive(self, gradient: Tensor) -> None:
        self.add_scores(gradient)


class _Observe(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, leaf: Tensor, probe: Any, geometry: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.probe, ctx.sizes = weakref.ref(probe), probe.layout.sizes()
        ctx.geometry, ctx.dtype = geometry, leaf.dtype
        # A view could not be written to by an activation in place.
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (x,) = ctx.saved_tensors
        if is_batched(grad):
            if (probe := ctx.probe()) is not None:
                probe.miss()
            return grad, None, None, None, None
        dense = dense_weight_grad(x, grad, ctx.sizes, ctx.geometry)
        return grad, None, dense.to(ctx.dtype), None, None


def dense_weight_grad(
    x: Tensor, grad: Tensor, sizes: Sequence[int], geometry: Sequence[Sequence[int]]
) -> Tensor:
    """Return the gradient [O, C, R, S] of a dense weight, of a convolution if it has a geometry."""
    if geometry:
        return reference.conv2d_dense_weight_grad(x, grad, sizes, *geometry)
    return reference.linear_dense_weight_grad(x, grad)
