"""Convolution as three operators: forward, input gradient, weight gradient.

The three are bilinear maps, and the gradient of each is given by the other two, so each can be
differentiated again. `index` is BlockLayout.tensors(), `sizes` BlockLayout.sizes().
"""

import math
from collections.abc import Sequence

from torch import Tensor

from sparse_kernels.cpu import convolution
from sparse_kernels.dispatch.backend import backend_of
from sparse_kernels.layout import PassIndex, SlotIndex
from sparse_kernels.memory_order import empty_images, in_order, order_of
from sparse_kernels.operators import reference
from sparse_kernels.registration import block_flops, positions, register, values_like
from sparse_kernels.triton.gather import gather
from sparse_kernels.triton.weight_grad import weight_grad

Ints = Sequence[int]
Index = Sequence[Tensor]
GEOMETRY = "int[] stride, int[] padding, int[] dilation"


def output_image(
    image: Ints, taps: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> tuple[int, int]:
    """Return (P, Q), the output height and width of a convolution over an image (H, W)."""
    p, q = (
        (image[i] + 2 * padding[i] - dilation[i] * (taps[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    return p, q


def result_order(x: Tensor, index: Index, sizes: Ints) -> str:
    """Return the order of what an operator makes of x: that of x, where its kernel has it."""
    order = order_of(x)
    if order == "contiguous" and backend_of(x, index, sizes) == "triton":
        return "channels_last"
    return order


def _forward(
    x: Tensor,
    values: Tensor,
    index: Index,
    sizes: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    bias: Tensor | None = None,
) -> Tensor:
    geometry, order = (stride, padding, dilation), result_order(x, index, sizes)
    image = output_image(x.shape[2:], sizes[2:4], *geometry)
    backend = backend_of(x, index, sizes, x.shape[0] * math.prod(image))
    if backend == "masked":
        return in_order(reference.conv2d(x, values, bias, index, sizes, *geometry), order)
    y = _forward_fake(x, values, index, sizes, *geometry)
    if backend == "gemm":
        return convolution.conv2d(x, values, bias, y, index, sizes, geometry)
    lists = PassIndex.forward(index)
    gather(in_order(x, order), values, bias, y, lists, sizes, geometry, False)
    return y


def _forward_fake(x, values, index, sizes, stride, padding, dilation, bias=None):
    image = output_image(x.shape[2:], sizes[2:4], stride, padding, dilation)
    return empty_images(x, (x.shape[0], sizes[0], *image), result_order(x, index, sizes))


def _forward_backward(needed, grad, x, values, index, sizes, *geometry):
    image = x.shape[2:]
    # Once for both gradients.
    grad = in_order(grad, result_order(x, index, sizes))
    return (
        conv2d_input_grad(grad, values, index, sizes, image, *geometry) if needed[0] else None,
        conv2d_weight_grad(x, grad, index, sizes, *geometry) if needed[1] else None,
        grad.sum((0, 2, 3)) if needed[-1] else None,
    )


def _input_grad(
    grad: Tensor,
    values: Tensor,
    index: Index,
    sizes: Ints,
    image: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    geometry, order = (stride, padding, dilation), result_order(grad, index, sizes)
    backend = backend_of(grad, index, sizes, positions(grad.shape, 1))
    if backend == "masked":
        dx = reference.conv2d_input_grad(grad, values, index, sizes, image, *geometry)
        return in_order(dx, order)
    dx = _input_grad_fake(grad, values, index, sizes, image, *geometry)
    if backend == "gemm":
        return convolution.conv2d_input_grad(grad, values, dx, index, sizes, geometry)
    lists = PassIndex.input_grad(index)
    gather(in_order(grad, order), values, None, dx, lists, sizes, geometry, True)
    return dx


def _input_grad_fake(grad, values, index, sizes, image, stride, padding, dilation):
    return empty_images(grad, (grad.shape[0], sizes[1], *image), result_order(grad, index, sizes))


def _input_grad_backward(needed, ddx, grad, values, index, sizes, image, *geometry):
    return (
        conv2d(ddx, values, index, sizes, *geometry) if needed[0] else None,
        conv2d_weight_grad(ddx, grad, index, sizes, *geometry) if needed[1] else None,
    )


def _weight_grad(
    x: Tensor,
    grad: Tensor,
    index: Index,
    sizes: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    geometry = (stride, padding, dilation)
    backend = backend_of(x, index, sizes, positions(grad.shape, 1))
    if backend == "masked":
        return reference.conv2d_weight_grad(x, grad, index, sizes, *geometry)
    if backend == "gemm":
        return convolution.conv2d_weight_grad(x, grad, index, sizes, geometry)
    order = result_order(x, index, sizes)
    x, grad = in_order(x, order), in_order(grad, order)
    return weight_grad(x, grad, SlotIndex.of(index), sizes, geometry)


def _weight_grad_fake(x, grad, index, sizes, stride, padding, dilation):
    return values_like(x, index, sizes)


def _weight_grad_backward(needed, ddvalues, x, grad, index, sizes, *geometry):
    image = x.shape[2:]
    return (
        conv2d_input_grad(grad, ddvalues, index, sizes, image, *geometry) if needed[0] else None,
        conv2d(x, ddvalues, index, sizes, *geometry) if needed[1] else None,
    )


conv2d = register(
    "conv2d",
    f"(Tensor x, Tensor values, Tensor[] index, int[] sizes, {GEOMETRY}, Tensor? bias=None)"
    " -> Tensor",
    _forward,
    _forward_fake,
    _forward_backward,
    lambda x, values, *_, out_shape=None, **__: block_flops(values, positions(out_shape, 1)),
)
conv2d_input_grad = register(
    "conv2d_input_grad",
    f"(Tensor grad, Tensor values, Tensor[] index, int[] sizes, int[] image, {GEOMETRY}) -> Tensor",
    _input_grad,
    _input_grad_fake,
    _input_grad_backward,
    lambda grad, values, *_, **__: block_flops(values, positions(grad, 1)),
)
conv2d_weight_grad = register(
    "conv2d_weight_grad",
    f"(Tensor x, Tensor grad, Tensor[] index, int[] sizes, {GEOMETRY}) -> Tensor",
    _weight_grad,
    _weight_grad_fake,
    _weight_grad_backward,
    lambda x, grad, *_, out_shape=None, **__: block_flops(out_shape, positions(grad, 1)),
)
