"""Convolution as three operators; `index` is BlockLayout.tensors(), `sizes` BlockLayout.sizes()."""

import math
from collections.abc import Sequence

from torch import Tensor

from sparse_kernels.cpu import native
from sparse_kernels.dispatch.backend import backend_of
from sparse_kernels.index_tensors import forward_index, input_grad_index
from sparse_kernels.memory_order import empty_images, in_order, order_of
from sparse_kernels.operators import reference
from sparse_kernels.operators.passes import Passes, register_passes, values_like
from sparse_kernels.registration import positions
from sparse_kernels.triton.gather import GatherCall
from sparse_kernels.triton.strips import gather_strips, strip_weight_grad

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


def _forward(x, values, index, sizes, stride, padding, dilation, bias=None):
    geometry = (stride, padding, dilation)
    image = output_image(x.shape[2:], sizes[2:4], *geometry)
    backend = backend_of(x, index, sizes, x.shape[0] * math.prod(image))
    if backend == "masked":
        return defined(x, values, index, sizes, *geometry, bias, in_place=True)
    y = _forward_fake(x, values, index, sizes, *geometry)
    if backend == "native":
        return native.conv2d(x, values, bias, y, index, sizes, geometry)
    x, lists = in_order(x, result_order(x, index, sizes)), forward_index(index, sizes)
    gather_strips(GatherCall(x, values, y, lists, sizes, geometry, bias=bias), index)
    return y


def defined(x, values, index, sizes, stride, padding, dilation, bias=None, in_place=False):
    """Return the operator's result by PyTorch's own; see registration.define."""
    geometry = (stride, padding, dilation)
    y = reference.conv2d(x, values, bias, index, sizes, *geometry, in_place=in_place)
    return in_order(y, result_order(x, index, sizes))


def _forward_fake(x, values, index, sizes, stride, padding, dilation, bias=None):
    image = output_image(x.shape[2:], sizes[2:4], stride, padding, dilation)
    return empty_images(x, (x.shape[0], sizes[0], *image), result_order(x, index, sizes))


def _input_grad(
    grad: Tensor, values: Tensor, index: Index, sizes: Ints, image: Ints, *geometry: Ints
) -> Tensor:
    backend = backend_of(grad, index, sizes, positions(grad.shape, 1))
    if backend == "masked":
        return _input_grad_defined(grad, values, index, sizes, image, *geometry, in_place=True)
    dx = _input_grad_fake(grad, values, index, sizes, image)
    if backend == "native":
        return native.conv2d_input_grad(grad, values, dx, index, sizes, geometry)
    order = result_order(grad, index, sizes)
    grad, lists = in_order(grad, order), input_grad_index(index, sizes)
    call = GatherCall(grad, values, dx, lists, sizes, geometry, transposed=True)
    gather_strips(call, index)
    return dx


def _input_grad_defined(grad, values, index, sizes, image, *geometry, in_place=False):
    dx = reference.conv2d_input_grad(
        grad, values, index, sizes, image, *geometry, in_place=in_place
    )
    return in_order(dx, result_order(grad, index, sizes))


def _input_grad_fake(grad, values, index, sizes, image, *geometry):
    return empty_images(grad, (grad.shape[0], sizes[1], *image), result_order(grad, index, sizes))


def _weight_grad(x: Tensor, grad: Tensor, index: Index, sizes: Ints, *geometry: Ints) -> Tensor:
    backend = backend_of(x, index, sizes, positions(grad.shape, 1))
    if backend == "masked":
        return reference.conv2d_weight_grad(x, grad, index, sizes, *geometry)
    if backend == "native":
        return native.conv2d_weight_grad(x, grad, index, sizes, geometry)
    order = result_order(x, index, sizes)
    return strip_weight_grad(in_order(x, order), in_order(grad, order), index, sizes, geometry)


conv2d, conv2d_input_grad, conv2d_weight_grad = register_passes(
    "conv2d",
    GEOMETRY,
    Passes(_forward, _input_grad, _weight_grad),
    Passes(_forward_fake, _input_grad_fake, values_like),
    Passes(defined, _input_grad_defined, reference.conv2d_weight_grad),
    # Once for both gradients.
    prepared=lambda grad, x, index, sizes: in_order(grad, result_order(x, index, sizes)),
    bias_grad=lambda grad: grad.sum((0, 2, 3)),
)
