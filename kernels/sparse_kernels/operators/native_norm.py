"""Batch norm with its residual and ReLU by the native kernels of a CPU.

    z = relu((x - mean) / sqrt(variance + eps) * weight + bias + residual)

One operator forward and one backward. Gradients of gradients are left to PyTorch's own operators.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_kernels.cpu import norms
from sparse_kernels.registration import define
from sparse_kernels.transforms import refuse_batches

Vector = Tensor | None


def native_norm(
    x: Tensor,
    weight: Vector,
    bias: Vector,
    eps: float,
    *,
    fixed: tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return z and x [N, C, H, W], and mean and variance that were taken, fp64 [2, C].

    Whoever else reads x should read the one returned: its gradient is then added in the same pass.
    Only for images that `cpu.norms.supports`, on a machine that has native kernels.

    Args:
        x: [N, C, H, W].
        weight, bias: [C], or None for 1 and 0.
        fixed: a mean and a variance [C] to normalise by; None for those of x, the variance biased.
        residual: as x.
        relu: whether negative numbers become zero.
    """
    moments = None if fixed is None else torch.stack(fixed).detach().double()
    return _NativeNorm.apply(x, residual, weight, bias, moments, eps, relu)


class _NativeNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, residual, weight, bias, fixed, eps: float, relu: bool):
        ctx.set_materialize_grads(False)
        z, moments = norm_native(x, residual, fixed, weight, bias, eps, relu)
        ctx.mark_non_differentiable(moments)
        # Only with a residual does x not say which part was negative.
        out = z if relu and residual is not None else None
        ctx.save_for_backward(x, out, moments, weight, bias)
        ctx.numbers = eps, relu, fixed is None
        return z, x, moments

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, other: Tensor | None, _: None):
        refuse_batches(grad)
        refuse_batches(other)
        if grad is None:
            return other, *[None] * 6
        backward = _recorded if torch.is_grad_enabled() else _backward
        found = backward(grad, other, *ctx.saved_tensors, *ctx.numbers, ctx.needs_input_grad)
        return *found, *[None] * 3


def _backward(grad, other, x, out, moments, weight, bias, eps, relu, batch, needed):
    """Return the gradients of x, residual, weight and bias."""
    numbers = eps, relu, batch, relu and needed[1]
    tensors = grad, x, out, other, moments, weight, bias
    dx, dresidual, learnt = norm_native_backward(*tensors, *numbers)
    dbias, dweight = (
        None if vector is None else found.to(vector.dtype)
        for vector, found in zip((bias, weight), learnt)
    )
    return dx, (dresidual if relu else grad) if needed[1] else None, dweight, dbias


def _recorded(grad, other, x, out, moments, weight, bias, eps, relu, batch, needed):
    """Return the same by PyTorch's operators, which autograd records."""
    dtype = x.dtype if weight is None else weight.dtype  # PyTorch takes no other beside it
    fixed = (None, None) if batch else moments.to(dtype)
    z = F.batch_norm(x, *fixed, weight, bias, batch, 0.0, eps)
    if relu:
        grad = grad * ~((z if out is None else out) <= 0)
    found = {1: grad} if needed[1] else {}
    wanted = {i: t for i, t in {0: x, 2: weight, 3: bias}.items() if needed[i]}
    if wanted:
        gradients = torch.autograd.grad(z, list(wanted.values()), grad, create_graph=True)
        found |= dict(zip(wanted, gradients))
    if needed[0] and other is not None:
        found[0] = found[0] + other
    return [found.get(i) for i in range(4)]


def _backward_kernel(grad, x, *rest):
    dx, dresidual, learnt = norms.backward(grad, x, *rest)
    return dx, x.new_empty(0) if dresidual is None else dresidual, learnt


def _backward_fake(grad, x, y, other, moments, *rest):
    dresidual = norms.like(x) if rest[-1] else x.new_empty(0)
    return norms.like(x), dresidual, torch.empty_like(moments, dtype=torch.float32)


norm_native = define(
    "norm_native",
    "(Tensor x, Tensor? residual, Tensor? moments, Tensor? weight, Tensor? bias, float eps, "
    "bool relu) -> (Tensor, Tensor)",
    norms.forward,
    lambda x, *_: (norms.like(x), x.new_empty((2, x.shape[1]), dtype=torch.float64)),
)
# grad: of z. y: z, where it is needed to say which part was negative. other: another gradient of x,
# to be added. The last result: gradients of bias and weight, float32 [2, C].
norm_native_backward = define(
    "norm_native_backward",
    "(Tensor grad, Tensor x, Tensor? y, Tensor? other, Tensor moments, Tensor? weight, "
    "Tensor? bias, float eps, bool relu, bool batch, bool residual) -> (Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
)
