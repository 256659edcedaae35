"""Convolution with what surrounds it: the input's batch norm and ReLU, the output's ReLU and sums.

    z = relu(scale * x + shift)    y = relu(conv(z) + bias)    mean, variance of y by channel

`composed` is the definition. The operators do the same in the passes that they make anyway: z is
never stored, nor is its gradient. They are for the Triton kernels; the gradient of a gradient is
left to the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_kernels.activation import empty_images, in_order
from sparse_kernels.convolution import (
    GEOMETRY,
    conv2d,
    conv2d_input_grad,
    conv2d_weight_grad,
    output_image,
    result_order,
)
from sparse_kernels.fusion import Fusion
from sparse_kernels.gather import gather
from sparse_kernels.layout import PassIndex, SlotIndex
from sparse_kernels.library import (
    below_autograd,
    block_flops,
    define,
    make_differentiable,
    positions,
    values_like,
)
from sparse_kernels.weight_grad import weight_grad

Ints = Sequence[int]
Index = Sequence[Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


def transform(x: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    """Return scale * x + shift by channel of x [N, C, H, W], or its positive part."""
    z = x * scale[:, None, None] + shift[:, None, None]
    return (z.relu() if relu else z).to(x.dtype)


def composed(
    x: Tensor,
    values: Tensor,
    index: Index,
    sizes: Ints,
    geometry: Sequence[Ints],
    bias: Tensor | None,
    fusion: Fusion,
) -> Triple:
    """Return y [N, O, P, Q] and, where fusion.statistics, its mean and variance [O] in float32."""
    if fusion.scale is not None:
        x = transform(x, fusion.scale, fusion.shift, fusion.relu_input)
    y = conv2d(x, values, index, sizes, *geometry, bias)
    y = y.relu() if fusion.relu else y
    if not fusion.statistics:
        return y, y.new_empty(0), y.new_empty(0)
    variance, mean = torch.var_mean(y.float(), (0, 2, 3), correction=0)
    return y, mean, variance


def fused(
    x: Tensor,
    values: Tensor,
    index: Index,
    sizes: Ints,
    geometry: Sequence[Ints],
    bias: Tensor | None,
    fusion: Fusion,
) -> Triple:
    """Return what `composed` does, from the fused operators."""
    affine = (bias, fusion.scale, fusion.shift)
    switches = (fusion.relu_input, fusion.relu, fusion.statistics)
    return conv2d_fused(x, values, index, sizes, *geometry, *affine, *switches)


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
    relu: bool,
    statistics: bool,
) -> Triple:
    geometry = (stride, padding, dilation)
    switches = (relu_input, relu, statistics)
    y, *empty = _forward_fake(x, values, index, sizes, *geometry, bias, scale, shift, *switches)
    src, lists = in_order(x, result_order(x, index, sizes)), PassIndex.forward(index)
    fusion = Fusion(scale, shift, *switches)
    sums = gather(src, values, bias, y, lists, sizes, geometry, False, fusion)
    return (y, *(empty if sums is None else sums.mean_and_variance()))


def _forward_fake(x, values, index, sizes, stride, padding, dilation, *_):
    channels = sizes[0] if _[-1] else 0
    image = output_image(x.shape[2:], sizes[2:4], stride, padding, dilation)
    y = empty_images(x, (x.shape[0], sizes[0], *image), result_order(x, index, sizes))
    mean, variance = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    return y, mean, variance


def _input_grad(
    grad: Tensor,
    values: Tensor,
    index: Index,
    sizes: Ints,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    relu_input: bool,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Triple:
    order = result_order(grad, index, sizes)
    dx = empty_images(grad, x.shape, order)
    fusion, geometry = Fusion(scale, shift, relu_input), (stride, padding, dilation)
    lists, x = PassIndex.input_grad(index), in_order(x, order)
    grad = in_order(grad, order)
    sums = gather(grad, values, None, dx, lists, sizes, geometry, True, fusion, x)
    dshift, dscale = sums.totals()
    return dx, dscale, dshift


def _input_grad_fake(grad, values, index, sizes, x, scale, shift, *_):
    dx = empty_images(grad, x.shape, result_order(grad, index, sizes))
    return dx, torch.empty_like(scale), torch.empty_like(shift)


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


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, index: Any, sizes: Any, *rest: Any) -> Triple:
        *geometry, _, scale, shift, relu_input, relu, statistics = rest
        with below_autograd():
            y, mean, variance = conv2d_fused(x, values, index, sizes, *rest)
        ctx.save_for_backward(x, values, scale, shift, y, mean, *index)
        ctx.numbers = sizes, geometry, relu_input, relu, statistics
        if not statistics:
            ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, mean_grad: Tensor, variance_grad: Tensor):
        x, values, scale, shift, y, mean, *index = ctx.saved_tensors
        sizes, geometry, relu_input, relu, statistics = ctx.numbers
        if statistics:
            grad = grad + _statistics_grad(y, mean, mean_grad, variance_grad)
        if relu:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        needed = ctx.needs_input_grad
        dx = dvalues = dscale = dshift = None
        if scale is None:
            if needed[0]:
                dx = conv2d_input_grad(grad, values, index, sizes, x.shape[2:], *geometry)
            if needed[1]:
                dvalues = conv2d_weight_grad(x, grad, index, sizes, *geometry)
        else:
            affine = (scale, shift, relu_input, *geometry)
            if needed[0] or needed[8] or needed[9]:
                dx, dscale, dshift = conv2d_fused_input_grad(grad, values, index, sizes, x, *affine)
            if needed[1]:
                dvalues = conv2d_fused_weight_grad(x, grad, index, sizes, *affine)
        dbias = grad.sum((0, 2, 3)) if needed[7] else None
        return dx, dvalues, *[None] * 5, dbias, dscale, dshift, None, None, None


def _statistics_grad(y: Tensor, mean: Tensor, mean_grad: Tensor, variance_grad: Tensor) -> Tensor:
    """Return the gradient of y [N, O, P, Q] from those of its mean and variance [O]."""
    count = positions(y.shape, 1)
    slope = (2 / count * variance_grad)[:, None, None]
    return ((y - mean[:, None, None]) * slope + (mean_grad / count)[:, None, None]).to(y.dtype)


SHARED = "Tensor values, Tensor[] index, int[] sizes"
conv2d_fused = define(
    "conv2d_fused",
    f"(Tensor x, {SHARED}, {GEOMETRY}, Tensor? bias, Tensor? scale, Tensor? shift, "
    "bool relu_input, bool relu, bool statistics) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    lambda x, values, *_, out_shape=None, **__: block_flops(values, positions(out_shape[0], 1)),
)
make_differentiable(conv2d_fused, _Fused)
conv2d_fused_input_grad = define(
    "conv2d_fused_input_grad",
    f"(Tensor grad, {SHARED}, Tensor x, Tensor scale, Tensor shift, bool relu_input, {GEOMETRY})"
    " -> (Tensor, Tensor, Tensor)",
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
