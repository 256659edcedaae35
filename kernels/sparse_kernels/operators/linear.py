"""The linear layer as three operators, on kernels of a convolution of one-pixel images."""

from collections.abc import Sequence

from torch import Tensor

from sparse_kernels.cpu import native
from sparse_kernels.dispatch.backend import backend_of
from sparse_kernels.index_tensors import forward_index, input_grad_index, slot_index
from sparse_kernels.operators import reference
from sparse_kernels.operators.passes import Passes, register_passes, values_like
from sparse_kernels.registration import positions
from sparse_kernels.triton.gather import GatherCall, gather
from sparse_kernels.triton.weight_grad import weight_grad

Ints = Sequence[int]
Index = Sequence[Tensor]
# Stride, padding and dilation.
ONE_PIXEL = ((1, 1), (0, 0), (1, 1))
BY_LIBRARY = {"masked": reference, "native": native}


def _pixel(x: Tensor) -> Tensor:
    """View [..., C] as images [N, C, 1, 1]; what is not contiguous is copied."""
    return x.reshape(-1, x.shape[-1])[:, :, None, None]


def _forward(
    x: Tensor, values: Tensor, index: Index, sizes: Ints, bias: Tensor | None = None
) -> Tensor:
    backend = backend_of(x, index, sizes, positions(x.shape, -1))
    if backend != "triton":
        return BY_LIBRARY[backend].linear(x, values, bias, index, sizes)
    y = _forward_fake(x, values, index, sizes)
    lists = forward_index(index, sizes)
    gather(GatherCall(_pixel(x), values, _pixel(y), lists, sizes, ONE_PIXEL, bias=bias))
    return y


def _defined(x, values, index, sizes, bias=None):
    return reference.linear(x, values, bias, index, sizes, in_place=False)


def _forward_fake(x, values, index, sizes, bias=None):
    return x.new_empty((*x.shape[:-1], sizes[0]))


def _input_grad(grad: Tensor, values: Tensor, index: Index, sizes: Ints) -> Tensor:
    backend = backend_of(grad, index, sizes, positions(grad.shape, -1))
    if backend != "triton":
        return BY_LIBRARY[backend].linear_input_grad(grad, values, index, sizes)
    dx = _input_grad_fake(grad, values, index, sizes)
    lists = input_grad_index(index, sizes)
    gather(GatherCall(_pixel(grad), values, _pixel(dx), lists, sizes, ONE_PIXEL, transposed=True))
    return dx


def _input_grad_defined(grad, values, index, sizes):
    return reference.linear_input_grad(grad, values, index, sizes, in_place=False)


def _input_grad_fake(grad, values, index, sizes):
    return grad.new_empty((*grad.shape[:-1], sizes[1]))


def _weight_grad(x: Tensor, grad: Tensor, index: Index, sizes: Ints) -> Tensor:
    backend = backend_of(x, index, sizes, positions(x.shape, -1))
    if backend != "triton":
        return BY_LIBRARY[backend].linear_weight_grad(x, grad, index, sizes)
    slots = slot_index(index, sizes)
    return weight_grad(_pixel(x), _pixel(grad), slots, sizes, ONE_PIXEL)


linear, linear_input_grad, linear_weight_grad = register_passes(
    "linear",
    "",
    Passes(_forward, _input_grad, _weight_grad),
    Passes(_forward_fake, _input_grad_fake, values_like),
    Passes(_defined, _input_grad_defined, reference.linear_weight_grad),
    prepared=lambda grad, *_: grad,
    # No `flatten`: the vmap of is_grads_batched has none.
    bias_grad=lambda grad: (grad if grad.ndim == 2 else grad.reshape(-1, grad.shape[-1])).sum(0),
)
