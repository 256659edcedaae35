"""A probe asks backward for the gradient that the dense weight would have, block by block.

Gradient growth (RigL, Evci et al. 2020) needs dense weight gradients on update steps only. The
probe is a leaf tensor of the dense shape that costs no memory (all its strides are 0): the
operator's output is passed through `observe`, whose backward gives the probe the dense gradient;
as soon as autograd has summed it over all uses of the layer, it is reduced to one score a block and
freed, so no more than one layer's dense gradient exists at a time.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels.layout import BlockLayout
from sparse_kernels.operators import reference


class DenseGradientProbe:
    """Collects the L1 norm of the dense gradient of every block of one layer."""

    def __init__(
        self,
        layout: BlockLayout,
        like: Tensor,
        memory: float = 1.0,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Watch a layer with `layout` whose values have the dtype and device of `like`.

        Every backward multiplies the scores of those before by `memory`, and adds its own, of the
        gradient that `reduce` makes of the dense one: its mean over processes, for example.
        """
        self.layout, self.memory, self._make_scored = layout, memory, reduce
        self.scores: Tensor | None = None
        self.leaf = like.new_zeros(()).expand(layout.shape).detach().requires_grad_()
        # A strong reference would close a circle through autograd, which is never collected.
        probe = weakref.ref(self)

        def score(leaf: Tensor) -> None:
            alive = probe()
            if alive is not None:
                alive._score(leaf)

        self.leaf.register_post_accumulate_grad_hook(score)

    def observe(self, y: Tensor, x: Tensor, *geometry: Sequence[int]) -> Tensor:
        """Return y, the output for x; geometry = stride, padding, dilation of a convolution."""
        return _Observe.apply(y, x, self.leaf, self.layout.sizes(), geometry)

    def _score(self, leaf: Tensor) -> None:
        gradient = leaf.grad.float()
        if self._make_scored is not None:
            gradient = self._make_scored(gradient)
        scores = reference.block_norms(gradient, self.layout.sizes())
        self.scores = scores if self.scores is None else self.memory * self.scores + scores
        leaf.grad = None


class _Observe(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, leaf: Tensor, sizes: Any, geometry: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.sizes, ctx.geometry, ctx.dtype = sizes, geometry, leaf.dtype
        # A view could not be written to by an activation in place.
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (x,) = ctx.saved_tensors
        if ctx.geometry:
            dense = reference.conv2d_dense_weight_grad(x, grad, ctx.sizes, *ctx.geometry)
        else:
            dense = reference.linear_dense_weight_grad(x, grad)
        return grad, None, dense.to(ctx.dtype), None, None
