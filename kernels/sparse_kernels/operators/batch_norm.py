"""Batch norm with its ReLU and a residual, in as few passes over memory as its arithmetic takes.

    z = relu((x - mean) / sqrt(variance + eps) * weight + bias + residual)

`Norm.apply` is the definition. `normalise` does the same with the Triton kernels: one pass forward,
and two backward, of which the first is left out where a convolution's passes have made its sums
(fused.py). mean and variance are numbers that somebody has taken before, often while x was stored.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_kernels.memory_order import empty_images, in_order, order_of
from sparse_kernels.registration import define, positions
from sparse_kernels.triton.launch import check_size, launch
from sparse_kernels.triton.sums import TileSums

Pair = tuple[Tensor, Tensor]
# Positions and channels of a program, and its warps.
BM, BC, WARPS = 128, 64, 8


class Norm(NamedTuple):
    """Batch norm of images [N, C, H, W] by given statistics, and the ReLU behind it.

    mean, variance: float32 [C], constants to autograd; the variance is the biased one.
    weight, bias: [C].
    batch: they are the statistics of x itself, so its gradient goes through them too.
    relu: the result's negative part becomes zero.
    scale, shift: float32 [C], what the others make of x, scale * x + shift, from whoever has taken
        them with the statistics; else the kernels make them.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor
    bias: Tensor
    eps: float = 1e-5
    batch: bool = True
    relu: bool = True
    scale: Tensor | None = None
    shift: Tensor | None = None

    def apply(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return z [N, C, H, W] by PyTorch's own operators, which take the statistics again."""
        known = (None, None) if self.batch else (self.mean, self.variance)
        z = F.batch_norm(x, *known, self.weight, self.bias, self.batch, 0.0, self.eps)
        z = z if residual is None else z + residual
        return z.relu() if self.relu else z


def normalise(x: Tensor, norm: Norm, residual: Tensor | None = None) -> Pair:
    """Return z [N, C, H, W] and x, by the Triton kernels.

    Whoever else reads x should read the one returned: its gradient is then added in the same pass.
    """
    return _Normalise.apply(x, residual, norm.weight, norm.bias, *norm[:2], *norm[4:])


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, residual, weight, bias, mean, variance, eps, batch, relu, *affine):
        ctx.set_materialize_grads(False)
        scale, shift = scale_and_shift(mean, variance, weight, bias, eps, *affine)
        z = norm_forward(x, residual, scale, shift, relu)
        # Only with a residual does x not say which part was negative.
        out = z if relu and residual is not None else None
        ctx.save_for_backward(x, out, mean, variance, weight, scale, shift)
        ctx.numbers = eps, batch, relu
        return z, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, other: Tensor | None):
        if grad is None:
            return other, *[None] * 10
        x, out, mean, variance, weight, scale, shift = ctx.saved_tensors
        eps, batch, relu = ctx.numbers
        grad = in_order(grad, kernel_order(x))
        sums = norm_sums(grad, x, out, scale, shift, relu)
        vectors = (sums, mean, variance, weight, scale, shift, eps)
        residual = ctx.needs_input_grad[1]
        dx, dresidual, dweight, dbias = norm_backward(
            grad, x, out, other, *vectors, False, relu, batch, residual
        )
        return dx, dresidual if residual else None, dweight, dbias, *[None] * 7


def scale_and_shift(
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Pair:
    """Return the last two, or where nobody has them, what they are."""
    if scale is None or shift is None:
        return norm_affine(mean, variance, weight, bias, eps)
    return scale, shift


def tile_statistics(x: Tensor) -> TileSums:
    """Return mean and variance of x [N, C, H, W] by tile, constants to autograd."""
    return TileSums(norm_tile_sums(x.detach()), positions(x.shape, 1))


def kernel_order(x: Tensor) -> str:
    """Return the order in which the kernels read and write images like x."""
    order = order_of(x)
    return "channels_last" if order == "contiguous" else order


def _tile_sums(x: Tensor) -> Tensor:
    from sparse_kernels.triton.batch_norm_kernels import tile_sums

    x = in_order(x, kernel_order(x))
    sums = _sums_fake(x)
    _launch(x, tile_sums, x, sums)
    return sums


def _sums_fake(x: Tensor) -> Tensor:
    return x.new_empty((-(-positions(x.shape, 1) // BM), 2, x.shape[1]), dtype=torch.float32)


def _affine(mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Pair:
    from sparse_kernels.triton.batch_norm_kernels import affine

    (channels,) = mean.shape
    scale, shift = torch.empty_like(mean), torch.empty_like(mean)
    vectors = (mean, variance, weight, bias, scale, shift)
    launch(mean, affine, (-(-channels // BC),), *vectors, channels, eps, BC=BC)
    return scale, shift


def _forward(
    x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor, relu: bool
) -> Tensor:
    from sparse_kernels.triton.batch_norm_kernels import normalised

    out, (x, residual) = _empty_and_ordered(x, x, residual)
    _launch(x, normalised, x, residual, scale, shift, out, RELU=relu)
    return out


def _gradient_sums(
    grad: Tensor, x: Tensor, out: Tensor | None, scale: Tensor, shift: Tensor, relu: bool
) -> Tensor:
    from sparse_kernels.triton.batch_norm_kernels import tile_gradients

    x, grad, out = (t if t is None else in_order(t, kernel_order(x)) for t in (x, grad, out))
    sums = _sums_fake(x)
    _launch(x, tile_gradients, grad, x, out, scale, shift, sums, RELU=relu)
    return TileSums(sums, positions(x.shape, 1)).totals()


def _backward(
    grad: Tensor,
    x: Tensor,
    out: Tensor | None,
    other: Tensor | None,
    sums: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    scaled: bool,
    relu: bool,
    batch: bool,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sparse_kernels.triton.batch_norm_kernels import normalised_grad

    dx, (grad, x, out, other) = _empty_and_ordered(x, grad, x, out, other)
    dresidual = torch.empty_like(dx) if residual else None
    dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
    vectors = (sums, mean, variance, weight, scale, shift)
    written = (dx, dresidual, dweight, dbias)
    switches = {"SCALED": scaled, "RELU": relu, "BATCH": batch}
    _launch(x, normalised_grad, grad, x, out, other, *vectors, *written, eps, **switches)
    return dx, dx.new_empty(0) if dresidual is None else dresidual, dweight, dbias


def _empty_and_ordered(x: Tensor, *images: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
    """Return an empty image like x in the kernels' order, and images in that order."""
    order = kernel_order(x)
    ordered = [t if t is None else in_order(t, order) for t in images]
    return empty_images(x, x.shape, order), ordered


def _launch(x: Tensor, kernel: Any, *arguments: Tensor | float | None, **switches: bool) -> None:
    """Launch a kernel of images like x, which takes arguments, M, C and switches."""
    check_size(x)
    rows, channels = positions(x.shape, 1), x.shape[1]
    grid = (-(-rows // BM), -(-channels // BC))
    constants = {"BM": BM, "BC": BC, "num_warps": WARPS}
    launch(x, kernel, grid, *arguments, rows, channels, **switches, **constants)


def _backward_fake(grad, x, out, other, sums, mean, variance, weight, *rest):
    dx = _like(x)
    dresidual = torch.empty_like(dx) if rest[-1] else dx.new_empty(0)
    return dx, dresidual, torch.empty_like(weight), torch.empty_like(weight)


def _like(x: Tensor, *_: Any) -> Tensor:
    return empty_images(x, x.shape, kernel_order(x))


def _no_flops(*_: Any, **__: Any) -> int:
    return 0


norm_tile_sums = define("norm_tile_sums", "(Tensor x) -> Tensor", _tile_sums, _sums_fake, _no_flops)
norm_affine = define(
    "norm_affine",
    "(Tensor mean, Tensor variance, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
    _affine,
    lambda mean, *_: (torch.empty_like(mean), torch.empty_like(mean)),
    _no_flops,
)
norm_forward = define(
    "norm_forward",
    "(Tensor x, Tensor? residual, Tensor scale, Tensor shift, bool relu) -> Tensor",
    _forward,
    _like,
    _no_flops,
)
norm_sums = define(
    "norm_sums",
    "(Tensor grad, Tensor x, Tensor? out, Tensor scale, Tensor shift, bool relu) -> Tensor",
    _gradient_sums,
    lambda grad, x, *_: x.new_empty((2, x.shape[1]), dtype=torch.float32),
    _no_flops,
)
norm_backward = define(
    "norm_backward",
    "(Tensor grad, Tensor x, Tensor? out, Tensor? other, Tensor sums, "
    "Tensor mean, Tensor variance, Tensor weight, Tensor scale, Tensor shift, float eps, "
    "bool scaled, bool relu, bool batch, bool residual) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    _no_flops,
)
