"""Convolution with what surrounds it: norm and ReLU of its input, residual and sums of its output.

    y = relu(conv(relu(norm(x))) + bias + residual)    mean, variance of y by channel

`composed` is the definition. `fused` does the same in the passes that it makes anyway: what the
convolution reads is never stored, nor is its gradient. Of a batch norm's backward one pass is left,
which needs sums that the input gradient has to be ready for. It is for the Triton kernels; the
gradient of a gradient is left to the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_kernels.activation import empty_images, in_order
from sparse_kernels.convolution import (
    GEOMETRY,
    conv2d,
    conv2d_weight_grad,
    output_image,
    result_order,
)
from sparse_kernels.fusion import Fusion
from sparse_kernels.gather import gather
from sparse_kernels.layout import PassIndex, SlotIndex
from sparse_kernels.library import block_flops, define, positions, values_like
from sparse_kernels.norm import Norm, norm_affine, norm_backward
from sparse_kernels.weight_grad import weight_grad

Ints = Sequence[int]
Index = Sequence[Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


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
) -> Fused:
    """Return what `composed` does, from the fused operators."""
    vectors, numbers = [None] * 4, (0.0, False, False)
    if norm is not None:
        vectors, numbers = norm[:4], norm[4:]
    switches = (relu, statistics)
    return Fused(
        *_Fused.apply(
            x, values, bias, residual, *vectors, numbers, switches, sizes, geometry, *index
        )
    )


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
        numbers: tuple[float, bool, bool],
        switches: tuple[bool, bool],
        sizes: Ints,
        geometry: Sequence[Ints],
        *index: Tensor,
    ):
        ctx.set_materialize_grads(False)
        eps, batch, relu_input = numbers
        scale = shift = None
        if mean is not None:
            scale, shift = norm_affine(mean, variance, weight, norm_bias, eps)
        y, *sums = conv2d_fused(
            x, values, index, sizes, *geometry, bias, scale, shift, relu_input, residual, *switches
        )
        ctx.mark_non_differentiable(*sums)
        out = y if switches[0] else None
        ctx.save_for_backward(x, values, out, mean, variance, weight, scale, shift, *index)
        ctx.numbers = eps, batch, relu_input, sizes, geometry
        return y, *sums, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: None, __: None, other: Tensor | None):
        x, values, out, mean, variance, weight, scale, shift, *index = ctx.saved_tensors
        eps, batch, relu_input, sizes, geometry = ctx.numbers
        rest = [None] * (4 + len(index))
        if grad is None:
            return other, *[None] * 7, *rest
        grad = in_order(grad, result_order(x, index, sizes))
        if out is not None:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        needed = ctx.needs_input_grad
        dx = dvalues = dweight = dnorm_bias = None
        transform = (scale, shift, relu_input)
        if needed[0] or needed[6] or needed[7]:
            image, origin = x.shape[2:], None if scale is None else x
            dx, sums = conv2d_fused_input_grad(
                grad, values, index, sizes, image, origin, *transform, other, *geometry
            )
            if scale is not None:
                vectors = (sums, mean, variance, weight, scale, shift, eps)
                dx, _, dweight, dnorm_bias = norm_backward(
                    dx, x, None, None, *vectors, True, False, batch, False
                )
        if needed[1] and scale is None:
            dvalues = conv2d_weight_grad(x, grad, index, sizes, *geometry)
        elif needed[1]:
            dvalues = conv2d_fused_weight_grad(x, grad, index, sizes, *transform, *geometry)
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
) -> Triple:
    geometry, order = (stride, padding, dilation), result_order(x, index, sizes)
    y, *empty = _forward_fake(x, values, index, sizes, *geometry, statistics)
    residual = None if residual is None else in_order(residual, order)
    fusion = Fusion(scale, shift, relu_input, residual, relu, statistics)
    lists, x = PassIndex.forward(index), in_order(x, order)
    sums = gather(x, values, bias, y, lists, sizes, geometry, False, fusion)
    return (y, *(empty if sums is None else sums.mean_and_variance()))


def _forward_fake(x, values, index, sizes, stride, padding, dilation, *rest):
    channels = sizes[0] if rest[-1] else 0
    image = output_image(x.shape[2:], sizes[2:4], stride, padding, dilation)
    y = empty_images(x, (x.shape[0], sizes[0], *image), result_order(x, index, sizes))
    mean, variance = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    return y, mean, variance


def _input_grad(
    grad: Tensor,
    values: Tensor,
    index: Index,
    sizes: Ints,
    image: Ints,
    x: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu_input: bool,
    other: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> tuple[Tensor, Tensor]:
    geometry, order = (stride, padding, dilation), result_order(grad, index, sizes)
    dx, empty = _input_grad_fake(grad, values, index, sizes, image, x)
    other = None if other is None else in_order(other, order)
    fusion, lists = Fusion(scale, shift, relu_input, other), PassIndex.input_grad(index)
    grad, x = in_order(grad, order), None if x is None else in_order(x, order)
    sums = gather(grad, values, None, dx, lists, sizes, geometry, True, fusion, x)
    return dx, empty if sums is None else sums.totals()


def _input_grad_fake(grad, values, index, sizes, image, x, *_):
    shape = (grad.shape[0], sizes[1], *image)
    dx = empty_images(grad, shape, result_order(grad, index, sizes))
    return dx, grad.new_empty((2, 0 if x is None else sizes[1]), dtype=torch.float32)


def _weight_grad(
    x: Tensor,
    grad: Tensor,
    index: Index,
    sizes: Ints,
    scale: Tensor,
    shift: Tensor,
    relu_input: bool,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    order = result_order(x, index, sizes)
    x, grad = in_order(x, order), in_order(grad, order)
    fusion, geometry = Fusion(scale, shift, relu_input), (stride, padding, dilation)
    return weight_grad(x, grad, SlotIndex.of(index), sizes, geometry, fusion)


SHARED = "Tensor values, Tensor[] index, int[] sizes"
conv2d_fused = define(
    "conv2d_fused",
    f"(Tensor x, {SHARED}, {GEOMETRY}, Tensor? bias, Tensor? scale, Tensor? shift, "
    "bool relu_input, Tensor? residual, bool relu, bool statistics) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    lambda x, values, *_, out_shape=None, **__: block_flops(values, positions(out_shape[0], 1)),
)
conv2d_fused_input_grad = define(
    "conv2d_fused_input_grad",
    f"(Tensor grad, {SHARED}, int[] image, Tensor? x, Tensor? scale, Tensor? shift, "
    "bool relu_input, "
    f"Tensor? other, {GEOMETRY}) -> (Tensor, Tensor)",
    _input_grad,
    _input_grad_fake,
    lambda grad, values, *_, **__: block_flops(values, positions(grad, 1)),
)
conv2d_fused_weight_grad = define(
    "conv2d_fused_weight_grad",
    "(Tensor x, Tensor grad, Tensor[] index, int[] sizes, Tensor scale, Tensor shift, "
    f"bool relu_input, {GEOMETRY}) -> Tensor",
    _weight_grad,
    lambda x, grad, index, sizes, *_: values_like(x, index, sizes),
    lambda x, grad, *_, out_shape=None, **__: block_flops(out_shape, positions(grad, 1)),
)
