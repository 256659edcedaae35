"""The linear layer as three operators: forward, input gradient, weight gradient.

As in convolution.py, the gradient of each is given by the other two.
"""

from collections.abc import Sequence

from torch import Tensor

from sparse_kernels import reference
from sparse_kernels.backend import require_backend
from sparse_kernels.library import block_flops, positions, register, values_like

Ints = Sequence[int]
Index = Sequence[Tensor]


def _forward(
    x: Tensor, values: Tensor, index: Index, sizes: Ints, bias: Tensor | None = None
) -> Tensor:
    require_backend(x.device)
    return reference.linear(x, values, bias, index, sizes)


def _forward_fake(x, values, index, sizes, bias=None):
    return x.new_empty((*x.shape[:-1], sizes[0]))


def _forward_backward(needed, grad, x, values, index, sizes):
    return (
        linear_input_grad(grad, values, index, sizes) if needed[0] else None,
        linear_weight_grad(x, grad, index, sizes) if needed[1] else None,
        grad.flatten(0, -2).sum(0) if needed[-1] else None,
    )


def _input_grad(grad: Tensor, values: Tensor, index: Index, sizes: Ints) -> Tensor:
    return reference.linear_input_grad(grad, values, index, sizes)


def _input_grad_fake(grad, values, index, sizes):
    return grad.new_empty((*grad.shape[:-1], sizes[1]))


def _input_grad_backward(needed, ddx, grad, values, index, sizes):
    return (
        linear(ddx, values, index, sizes) if needed[0] else None,
        linear_weight_grad(ddx, grad, index, sizes) if needed[1] else None,
    )


def _weight_grad(x: Tensor, grad: Tensor, index: Index, sizes: Ints) -> Tensor:
    return reference.linear_weight_grad(x, grad, index, sizes)


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
