"""Convolution as three operators: forward, input gradient, weight gradient.

The three are bilinear maps, and the gradient of each is given by the other two, so each can be
differentiated again. `index` is BlockLayout.tensors(), `sizes` BlockLayout.sizes().
"""

from collections.abc import Sequence

from torch import Tensor

from sparse_kernels import reference
from sparse_kernels.backend import require_backend
from sparse_kernels.library import block_flops, positions, register, values_like

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


def _images_like(x: Tensor, channels: int, image: Ints) -> Tensor:
    empty = x.new_empty((x.shape[0], channels, *image))
    return empty.contiguous(memory_format=reference.memory_format(x))


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
    require_backend(x.device)
    y = reference.conv2d(x, values, bias, index, sizes, stride, padding, dilation)
    return y.contiguous(memory_format=reference.memory_format(x))


def _forward_fake(x, values, index, sizes, stride, padding, dilation, bias=None):
    image = output_image(x.shape[2:], sizes[2:4], stride, padding, dilation)
    return _images_like(x, sizes[0], image)


def _forward_backward(needed, grad, x, values, index, sizes, *geometry):
    image = x.shape[2:]
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
    geometry = (stride, padding, dilation)
    dx = reference.conv2d_input_grad(grad, values, index, sizes, image, *geometry)
    return dx.contiguous(memory_format=reference.memory_format(grad))


def _input_grad_fake(grad, values, index, sizes, image, stride, padding, dilation):
    return _images_like(grad, sizes[1], image)


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
    return reference.conv2d_weight_grad(x, grad, index, sizes, stride, padding, dilation)


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
