"""Convolution with what surrounds it: norm and ReLU of its input, residual and sums of its output.

    y = conv(relu(norm(x))) + bias + residual    mean, variance of y by channel

`composed` is the definition. `fused` does the same in the passes that it makes anyway: what the
convolution reads is never stored, nor is its gradient. Of a batch norm's backward one pass is left,
which needs sums that the input gradient has to be ready for. It is for the Triton kernels; the
gradient of a gradient is left to the definition.

A layer and its norm take seven kernels a step under autocast: cast of the values, convolution,
norm (TileSums.batch_norm); input gradient, weight gradient, one that adds what both wrote by tile
and share, and the gradient of the norm.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_kernels.index_tensors import forward_index, input_grad_index
from sparse_kernels.memory_order import empty_images, in_order
from sparse_kernels.operators import convolution
from sparse_kernels.operators.batch_norm import Norm, norm_backward, scaled
from sparse_kernels.operators.convolution import GEOMETRY, conv2d, output_image, result_order
from sparse_kernels.registration import block_flops, define, positions
from sparse_kernels.transforms import refuse_batches
from sparse_kernels.triton.fusion import Fusion
from sparse_kernels.triton.gather import GatherCall
from sparse_kernels.triton.strips import gather_strips, strip_shares
from sparse_kernels.triton.sums import TileSums, added

Ints = Sequence[int]
Index = Sequence[Tensor]


class Fused(NamedTuple):
    """What a fused convolution returns.

    y: [N, O, P, Q].
    mean, variance: of y by channel, float32 [O], the variance biased; constants to autograd; empty
        unless statistics were asked for.
    x: its input. Whoever else reads that should read this one: its gradient is then added in the
        passes of the convolution.
    """

    y: Tensor
    mean: Tensor
    variance: Tensor
    x: Tensor


class FusedCall(NamedTuple):
    """What `composed` and `fused` are called with.

    x: [N, C, H, W], before its norm.
    values: [Z, BC, BO].
    index, sizes: BlockLayout.tensors() and BlockLayout.sizes().
    geometry: stride, padding, dilation.
    bias: [O]. norm: of x. residual: [N, O, P, Q]. Each may be None.
    statistics: take those of y.
    """

    x: Tensor
    values: Tensor
    index: Index
    sizes: Ints
    geometry: Sequence[Ints]
    bias: Tensor | None
    norm: Norm | None
    residual: Tensor | None
    statistics: bool


def composed(call: FusedCall) -> Fused:
    """Return the result by operators one after another."""
    x = call.x if call.norm is None else call.norm.apply(call.x)
    y = conv2d(x, call.values, call.index, call.sizes, *call.geometry, call.bias)
    y = y if call.residual is None else y + call.residual
    if not call.statistics:
        return Fused(y, y.new_empty(0), y.new_empty(0), call.x)
    variance, mean = torch.var_mean(y.detach().float(), (0, 2, 3), correction=0)
    return Fused(y, mean, variance, call.x)


def fused(call: FusedCall) -> tuple[Tensor, TileSums | None, Tensor]:
    """Return y, its statistics by tile, and x, of the fused operators.

    The values are cast to the type of x, and their gradient comes in their own.
    """
    learnt = (None, None) if call.norm is None else (call.norm.weight, call.norm.bias)
    y, sums, x = _Fused.apply(call.x, call.values, call.bias, call.residual, *learnt, call)
    return y, TileSums(sums, positions(y.shape, 1)) if call.statistics else None, x


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, values, bias, residual, weight, norm_bias, call: FusedCall):
        ctx.set_materialize_grads(False)
        norm = call.norm
        mean = variance = scale = shift = eps = None
        batch = relu_input = False
        if norm is not None:
            mean, variance, (scale, shift) = norm.mean, norm.variance, norm.affine()
            eps, batch, relu_input = norm.eps, norm.batch, norm.relu
        low = values.to(x.dtype)
        # How many tiles there are is known to the launcher alone: a traced graph has them joined.
        switches = (call.statistics, torch.compiler.is_compiling())
        y, sums = conv2d_fused(
            *(x, low, call.index, call.sizes, *call.geometry, bias),
            *(scale, shift, relu_input, residual, *switches),
        )
        ctx.mark_non_differentiable(sums)
        ctx.save_for_backward(x, low, mean, variance, weight, scale, shift, *call.index)
        ctx.numbers = call.sizes, call.geometry, eps, batch, relu_input, values.dtype
        return y, sums, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: None, other: Tensor | None):
        refuse_batches(grad)
        refuse_batches(other)
        if grad is None:
            return other, *[None] * 6
        x, values, mean, variance, weight, scale, shift, *index = ctx.saved_tensors
        sizes, geometry, eps, batch, relu_input, dtype = ctx.numbers
        of_x, of_values, of_bias, of_residual, of_weight, of_norm_bias, _ = ctx.needs_input_grad
        grad = in_order(grad, result_order(x, index, sizes))
        x_wanted = of_x or of_weight or of_norm_bias
        dx, sums, dvalues = conv2d_fused_backward(
            *(grad, x, values, index, sizes, *geometry, scale, shift, relu_input, other),
            x_wanted=x_wanted,
            values_wanted=of_values,
            dtype=dtype,
        )
        dweight = dnorm_bias = None
        if x_wanted and scale is not None:
            dx, _, dweight, dnorm_bias = norm_backward(
                *(dx, x, None, None, sums, mean, variance, weight, scale, shift, eps),
                scaled=True,
                relu=False,
                batch=batch,
                residual=False,
            )
        return (
            dx if x_wanted else None,
            dvalues if of_values else None,
            grad.sum((0, 2, 3)) if of_bias else None,
            grad if of_residual else None,
            dweight,
            dnorm_bias,
            None,
        )


def _forward(
    x, values, index, sizes, stride, padding, dilation,
    bias, scale, shift, relu_input, residual, statistics, join,
):  # fmt: skip
    geometry, order = (stride, padding, dilation), result_order(x, index, sizes)
    y, none = _forward_fake(x, values, index, sizes, *geometry, False, False)
    residual = None if residual is None else in_order(residual, order)
    fusion = Fusion(scale, shift, relu_input, residual, statistics)
    x, lists = in_order(x, order), forward_index(index, sizes)
    call = GatherCall(x, values, y, lists, sizes, geometry, bias=bias, fusion=fusion)
    sums = gather_strips(call, index)
    if sums is None:
        return y, none
    return y, sums.joined().sums if join else sums.sums


def _forward_fake(x, values, index, sizes, stride, padding, dilation, *rest):
    image = output_image(x.shape[2:], sizes[2:4], stride, padding, dilation)
    y = empty_images(x, (x.shape[0], sizes[0], *image), result_order(x, index, sizes))
    *_, statistics, _ = rest
    return y, x.new_empty((int(statistics), 2, sizes[0]), dtype=torch.float32)


def _defined(
    x, values, index, sizes, stride, padding, dilation,
    bias, scale, shift, relu_input, residual, statistics, join,
):  # fmt: skip
    if scale is not None:
        x = scaled(x, scale, shift, None, relu_input)
    y = convolution.defined(x, values, index, sizes, stride, padding, dilation, bias)
    y = y if residual is None else y + residual
    if not statistics:
        return y, x.new_empty((0, 2, sizes[0]), dtype=torch.float32)
    variance, mean = torch.var_mean(y.float(), (0, 2, 3), correction=0)
    return y, torch.stack((mean, variance))[None]


def _backward(
    grad, x, values, index, sizes, stride, padding, dilation,
    scale, shift, relu_input, other, x_wanted, values_wanted, dtype,
):  # fmt: skip
    geometry, order = (stride, padding, dilation), result_order(x, index, sizes)
    grad, x, other = (t if t is None else in_order(t, order) for t in (grad, x, other))
    fusion = Fusion(scale, shift, relu_input)
    dx, sums, partial = grad.new_empty(0), None, None
    if x_wanted:
        dx = empty_images(x, x.shape, order)
        call = GatherCall(
            *(grad, values, dx, input_grad_index(index, sizes), sizes, geometry),
            transposed=True,
            fusion=replace(fusion, residual=other),
            x=None if scale is None else x,
        )
        sums = gather_strips(call, index)
    if values_wanted:
        partial = strip_shares(x, grad, index, sizes, geometry, dtype, fusion)
    found = added(partial, dtype, None if sums is None else sums.sums)
    dvalues, totals = (grad.new_empty(0) if t is None else t for t in found)
    return dx, totals, dvalues


def _backward_fake(grad, x, values, index, sizes, stride, padding, dilation, scale, *rest):
    *_, x_wanted, values_wanted, dtype = rest
    dx, totals, dvalues = (grad.new_empty(0) for _ in range(3))
    if x_wanted:
        dx = empty_images(x, x.shape, result_order(x, index, sizes))
    if x_wanted and scale is not None:
        totals = grad.new_empty((2, sizes[1]), dtype=torch.float32)
    if values_wanted:
        dvalues = torch.empty_like(values, dtype=dtype)
    return dx, totals, dvalues


def _backward_flops(grad, x, values, *rest, **_):
    *_, x_wanted, values_wanted, _ = rest
    return block_flops(values, positions(grad, 1)) * (x_wanted + values_wanted)


conv2d_fused = define(
    "conv2d_fused",
    f"(Tensor x, Tensor values, Tensor[] index, int[] sizes, {GEOMETRY}, Tensor? bias, "
    "Tensor? scale, Tensor? shift, bool relu_input, Tensor? residual, bool statistics, "
    "bool join) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    lambda x, values, *_, out_shape, **__: block_flops(values, positions(out_shape[0], 1)),
    _defined,
)
# other: another gradient of x, to be added. dtype: of the gradient of the values.
conv2d_fused_backward = define(
    "conv2d_fused_backward",
    f"(Tensor grad, Tensor x, Tensor values, Tensor[] index, int[] sizes, {GEOMETRY}, "
    "Tensor? scale, Tensor? shift, bool relu_input, Tensor? other, bool x_wanted, "
    "bool values_wanted, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    _backward_flops,
)
