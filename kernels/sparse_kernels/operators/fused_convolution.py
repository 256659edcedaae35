"""Convolution with what surrounds it: norm and ReLU of its input, residual and sums of its output.

    y = relu(conv(relu(norm(x))) + bias + residual)    mean, variance of y by channel

`composed` is the definition. `fused` does the same in the passes that it makes anyway: what the
convolution reads is never stored, nor is its gradient. Of a batch norm's backward one pass is left,
which needs sums that the input gradient has to be ready for. It is for the Triton kernels; the
gradient of a gradient is left to the definition.

A layer and its norm take seven kernels a step under autocast: cast of the values, convolution,
norm (TileSums.batch_norm); input gradient, weight gradient, one that adds what both wrote by tile
and share, and the gradient of the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_kernels.layout import PassIndex, SlotIndex
from sparse_kernels.memory_order import empty_images, in_order
from sparse_kernels.operators.batch_norm import Norm, norm_backward, scale_and_shift
from sparse_kernels.operators.convolution import GEOMETRY, conv2d, output_image, result_order
from sparse_kernels.registration import block_flops, define, positions
from sparse_kernels.triton.fusion import Fusion
from sparse_kernels.triton.gather import gather
from sparse_kernels.triton.sums import TileSums, added
from sparse_kernels.triton.weight_grad import shares

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


def composed(
    x: Tensor,
    values: Tensor,
    index: Index,
    sizes: Ints,
    geometry: Sequence[Ints],
    bias: Tensor | None = None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    statistics: bool = False,
) -> Fused:
    """Return the result by operators one after another."""
    z = x if norm is None else norm.apply(x)
    y = conv2d(z, values, index, sizes, *geometry, bias)
    y = y if residual is None else y + residual
    y = y.relu() if relu else y
    if not statistics:
        return Fused(y, y.new_empty(0), y.new_empty(0), x)
    variance, mean = torch.var_mean(y.detach().float(), (0, 2, 3), correction=0)
    return Fused(y, mean, variance, x)


def fused(
    x: Tensor,
    values: Tensor,
    index: Index,
    sizes: Ints,
    geometry: Sequence[Ints],
    bias: Tensor | None = None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    statistics: bool = False,
) -> tuple[Tensor, TileSums | None, Tensor]:
    """Return y, its statistics by tile, and x, of the fused operators; otherwise as `composed`.

    values: of any type; they are cast to that of x, and their gradient comes in their own.
    """
    vectors, numbers = [None] * 6, (0.0, False, False)
    if norm is not None:
        vectors, numbers = [*norm[:4], *norm[7:]], norm[4:7]
    # How many tiles there are is known to the launcher alone: a traced graph has them joined.
    switches = (relu, statistics, torch.compiler.is_compiling())
    y, sums, x = _Fused.apply(
        x, values, bias, residual, *vectors, numbers, switches, sizes, geometry, *index
    )
    return y, TileSums(sums, positions(y.shape, 1)) if statistics else None, x


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        weight: Tensor | None,
        norm_bias: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        numbers: tuple[float, bool, bool],
        switches: tuple[bool, bool, bool],
        sizes: Ints,
        geometry: Sequence[Ints],
        *index: Tensor,
    ):
        ctx.set_materialize_grads(False)
        eps, batch, relu_input = numbers
        if mean is not None:
            scale, shift = scale_and_shift(mean, variance, weight, norm_bias, eps, scale, shift)
        dtype, values = values.dtype, values.to(x.dtype)
        y, sums = conv2d_fused(
            x, values, index, sizes, *geometry, bias, scale, shift, relu_input, residual, *switches
        )
        ctx.mark_non_differentiable(sums)
        out = y if switches[0] else None
        ctx.save_for_backward(x, values, out, mean, variance, weight, scale, shift, *index)
        ctx.numbers = dtype, eps, batch, relu_input, sizes, geometry
        return y, sums, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: None, other: Tensor | None):
        x, values, out, mean, variance, weight, scale, shift, *index = ctx.saved_tensors
        dtype, eps, batch, relu_input, sizes, geometry = ctx.numbers
        rest = [None] * (6 + len(index))
        if grad is None:
            return other, *[None] * 7, *rest
        grad = in_order(grad, result_order(x, index, sizes))
        if out is not None:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        needed = ctx.needs_input_grad
        wanted = (needed[0] or needed[6] or needed[7], needed[1])
        dweight = dnorm_bias = None
        dx, sums, dvalues = conv2d_fused_backward(
            *(grad, x, values, index, sizes, *geometry, scale, shift, relu_input),
            *(other, *wanted, dtype),
        )
        if wanted[0] and scale is not None:
            vectors = (sums, mean, variance, weight, scale, shift, eps)
            dx, _, dweight, dnorm_bias = norm_backward(
                dx, x, None, None, *vectors, True, False, batch, False
            )
        dx, dvalues = (g if w else None for g, w in zip((dx, dvalues), wanted))
        dbias = grad.sum((0, 2, 3)) if needed[2] else None
        dresidual = grad if needed[3] else None
        return dx, dvalues, dbias, dresidual, None, None, dweight, dnorm_bias, *rest


def _forward(
    x: Tensor,
    values: Tensor,
    index: Index,
    sizes: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu_input: bool,
    residual: Tensor | None,
    relu: bool,
    statistics: bool,
    join: bool,
) -> tuple[Tensor, Tensor]:
    geometry, order = (stride, padding, dilation), result_order(x, index, sizes)
    y, empty = _forward_fake(x, values, index, sizes, *geometry, False, False)
    residual = None if residual is None else in_order(residual, order)
    fusion = Fusion(scale, shift, relu_input, residual, relu, statistics)
    lists, x = PassIndex.forward(index), in_order(x, order)
    found = gather(x, values, bias, y, lists, sizes, geometry, False, fusion)
    if found is None:
        return y, empty
    return y, found.joined().sums if join else found.sums


def _forward_fake(x, values, index, sizes, stride, padding, dilation, *rest):
    image = output_image(x.shape[2:], sizes[2:4], stride, padding, dilation)
    y = empty_images(x, (x.shape[0], sizes[0], *image), result_order(x, index, sizes))
    statistics, _ = rest[-2:]
    return y, x.new_empty((int(statistics), 2, sizes[0]), dtype=torch.float32)


def _backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: Index,
    sizes: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    scale: Tensor | None,
    shift: Tensor | None,
    relu_input: bool,
    other: Tensor | None,
    x_wanted: bool,
    values_wanted: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    geometry, order = (stride, padding, dilation), result_order(x, index, sizes)
    grad, x, other = (t if t is None else in_order(t, order) for t in (grad, x, other))
    dx, sums, partial = grad.new_empty(0), None, None
    fusion = Fusion(scale, shift, relu_input, other)
    if x_wanted:
        dx, lists = empty_images(x, x.shape, order), PassIndex.input_grad(index)
        origin = None if scale is None else x
        sums = gather(grad, values, None, dx, lists, sizes, geometry, True, fusion, origin)
    if values_wanted:
        fusion = Fusion(scale, shift, relu_input)
        partial = shares(x, grad, SlotIndex.of(index), sizes, geometry, dtype, fusion)
    found = added(partial, dtype, None if sums is None else sums.sums)
    dvalues, totals = (grad.new_empty(0) if t is None else t for t in found)
    return dx, totals, dvalues


def _backward_fake(grad, x, values, index, sizes, *rest):
    scale, x_wanted, values_wanted, dtype = rest[3], *rest[-3:]
    empty = grad.new_empty(0)
    dx = empty_images(x, x.shape, result_order(x, index, sizes)) if x_wanted else empty
    has_sums = x_wanted and scale is not None
    totals = grad.new_empty((2, sizes[1]), dtype=torch.float32) if has_sums else grad.new_empty(0)
    return dx, totals, torch.empty_like(values, dtype=dtype) if values_wanted else grad.new_empty(0)


def _backward_flops(grad, x, values, *rest, **_):
    return block_flops(values, positions(grad, 1)) * (rest[-3] + rest[-2])


conv2d_fused = define(
    "conv2d_fused",
    f"(Tensor x, Tensor values, Tensor[] index, int[] sizes, {GEOMETRY}, Tensor? bias, "
    "Tensor? scale, Tensor? shift, bool relu_input, Tensor? residual, bool relu, bool statistics, "
    "bool join) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    lambda x, values, *_, out_shape=None, **__: block_flops(values, positions(out_shape[0], 1)),
)
conv2d_fused_backward = define(
    "conv2d_fused_backward",
    f"(Tensor grad, Tensor x, Tensor values, Tensor[] index, int[] sizes, {GEOMETRY}, "
    "Tensor? scale, Tensor? shift, bool relu_input, Tensor? other, bool x_wanted, "
    "bool values_wanted, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    _backward_flops,
)
