"""The linear layer as three operators: forward, input gradient, weight gradient.

As in convolution.py, the gradient of each is given by the other two.
"""

from collections.abc import Sequence

from torch import Tensor

from sparse_kernels.cpu import linear as gemm
from sparse_kernels.dispatch.backend import backend_of
from sparse_kernels.layout import PassIndex, SlotIndex
from sparse_kernels.operators import reference
from sparse_kernels.registration import block_flops, positions, register, values_like
from sparse_kernels.triton.gather import gather
from sparse_kernels.triton.weight_grad import weight_grad

Ints = Sequence[int]
Index = Sequence[Tensor]
# Stride, padding and dilation of a linear layer seen as a convolution of one-pixel images.
ONE_PIXEL = ((1, 1), (0, 0), (1, 1))


def _pixel(x: Tensor) -> Tensor:
    """View [..., C] as images [N, C, 1, 1]; what is not contiguous is copied."""
    return x.reshape(-1, x.shape[-1])[:, :, None, None]


def _forward(
    x: Tensor, values: Tensor, index: Index, sizes: Ints, bias: Tensor | None = None
) -> Tensor:
    backend = backend_of(x, index, sizes, positions(x.shape, -1))
    if backend == "masked":
        return reference.linear(x, values, bias, index, sizes)
    if backend == "gemm":
        return gemm.linear(x, values, bias, index, sizes)
    y = _forward_fake(x, values, index, sizes)
    lists = PassIndex.forward(index)
    gather(_pixel(x), values, bias, _pixel(y), lists, sizes, ONE_PIXEL, False)
    return y


def _forward_fake(x, values, index, sizes, bias=None):
    return x.new_empty((*x.shape[:-1], sizes[0]))


def _forward_backward(needed, grad, x, values, index, sizes):
    return (
        linear_input_grad(grad, values, index, sizes) if needed[0] else None,
        linear_weight_grad(x, grad, index, sizes) if needed[1] else None,
        grad.flatten(0, -2).sum(0) if needed[-1] else None,
    )


def _input_grad(grad: Tensor, values: Tensor, index: Index, sizes: Ints) -> Tensor:
    backend = backend_of(grad, index, sizes, positions(grad.shape, -1))
    if backend == "masked":
        return reference.linear_input_grad(grad, values, index, sizes)
    if backend == "gemm":
        return gemm.linear_input_grad(grad, values, index, sizes)
    dx = _input_grad_fake(grad, values, index, sizes)
    lists = PassIndex.input_grad(index)
    gather(_pixel(grad), values, None, _pixel(dx), lists, sizes, ONE_PIXEL, True)
    return dx


def _input_grad_fake(grad, values, index, sizes):
    return grad.new_empty((*grad.shape[:-1], sizes[1]))


def _input_grad_backward(needed, ddx, grad, values, index, sizes):
    return (
        linear(ddx, values, index, sizes) if needed[0] else None,
        linear_weight_grad(ddx, grad, index, sizes) if needed[1] else None,
    )


def _weight_grad(x: Tensor, grad: Tensor, index: Index, sizes: Ints) -> Tensor:
    backend = backend_of(x, index, sizes, positions(x.shape, -1))
    if backend == "masked":
        return reference.linear_weight_grad(x, grad, index, sizes)
    if backend == "gemm":
        return gemm.linear_weight_grad(x, grad, index, sizes)
    return weight_grad(_pixel(x), _pixel(grad), SlotIndex.of(index), sizes, ONE_PIXEL)


def _weight_grad_fake(x, grad, index, sizes):
    return values_like(x, index, sizes)


def _weight_grad_backward(needed, ddvalues, x, grad, index, sizes):
    return (
        linear_input_grad(grad, ddvalues, index, sizes) if needed[0] else None,
        linear(x, ddvalues, index, sizes) if needed[1] else None,
    )


linear = register(
    "linear",
    "(Tensor x, Tensor values, Tensor[] index, int[] sizes, Tensor? bias=None) -> Tensor",
    _forward,
    _forward_fake,
    _forward_backward,
    lambda x, values, *_, **__: block_flops(values, positions(x, -1)),
)
linear_input_grad = register(
    "linear_input_grad",
    "(Tensor grad, Tensor values, Tensor[] index, int[] sizes) -> Tensor",
    _input_grad,
    _input_grad_fake,
    _input_grad_backward,
    lambda grad, values, *_, **__: block_flops(values, positions(grad, -1)),
)
linear_weight_grad = register(
    "linear_weight_grad",
    "(Tensor x, Tensor grad, Tensor[] index, int[] sizes) -> Tensor",
    _weight_grad,
    _weight_grad_fake,
    _weight_grad_backward,
    lambda x, grad, *_, out_shape=None, **__: block_flops(out_shape, positions(x, -1)),
)
