"""Batch norm with its ReLU and a residual, in as few passes over memory as its arithmetic takes.

    z = relu((x - mean) / sqrt(variance + eps) * weight + bias + residual)

`Norm.apply` is the definition. `normalise` does the same with the Triton kernels: one pass forward,
and two backward, of which the first is left out where a convolution's passes have made its sums
(fused.py). mean and variance are numbers that somebody has taken before, often while x was stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_kernels.activation import empty_images, in_order, order_of
from sparse_kernels.launch import check_size, on_its_device
from sparse_kernels.library import define, positions

Pair = tuple[Tensor, Tensor]
# Positions and channels of a program, and its warps; channels and tiles of one that joins sums.
BM, BC, WARPS = 128, 64, 8
JOINED_CHANNELS, JOINED_TILES = 16, 256


class Norm(NamedTuple):
    """Batch norm of images [N, C, H, W] by given statistics, and the ReLU behind it.

    mean, variance: float32 [C], constants to autograd; the variance is the biased one.
    weight, bias: [C].
    batch: they are the statistics of x itself, so its gradient goes through them too.
    relu: the result's negative part becomes zero.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor
    bias: Tensor
    eps: float = 1e-5
    batch: bool = True
    relu: bool = True

    def apply(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return z [N, C, H, W] by PyTorch's own operators, which take the statistics again."""
        known = (None, None) if self.batch else (self.mean, self.variance)
        z = F.batch_norm(x, *known, self.weight, self.bias, self.batch, 0.0, self.eps)
        z = z if residual is None else z + residual
        return z.relu() if self.relu else z


class TileSums(NamedTuple):
    """What a pass wrote by tile: float32 [tiles, 2, C], of `size` positions each.

    Only the last tile may have fewer, so that there are `positions` in all.
    """

    sums: Tensor
    size: int
    positions: int

    def totals(self) -> Tensor:
        """Return both sums over all tiles, [2, C]."""
        return self.sums.sum(0)

    def mean_and_variance(self) -> Pair:
        """Return mean and biased variance [C] from the tiles' means and squared deviations.

        Source: Chan, Golub and LeVeque 1979, "Updating formulae", which lose nothing to
        cancellation where the mean is large.
        """
        from sparse_kernels.norm_kernels import joined

        tiles, _, channels = self.sums.shape
        mean, variance = (self.sums.new_empty(channels) for _ in range(2))
        joined[(-(-channels // JOINED_CHANNELS),)](
            self.sums,
            mean,
            variance,
            self.positions,
            channels,
            self.size,
            tiles,
            SUMS=JOINED_TILES,
            BC=JOINED_CHANNELS,
        )
        return mean, variance


def normalise(x: Tensor, norm: Norm, residual: Tensor | None = None) -> Pair:
    """Return z [N, C, H, W] and x, by the Triton kernels.

    Whoever else reads x should read the one returned: its gradient is then added in the same pass.
    """
    return _Normalise.apply(x, residual, norm.weight, norm.bias, *norm[:2], *norm[4:])


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, residual, weight, bias, mean, variance, eps, batch, relu):
        ctx.set_materialize_grads(False)
        scale, shift = norm_affine(mean, variance, weight, bias, eps)
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
            return other, *[None] * 8
        x, out, mean, variance, weight, scale, shift = ctx.saved_tensors
        eps, batch, relu = ctx.numbers
        grad = in_order(grad, kernel_order(x))
        sums = norm_sums(grad, x, out, scale, shift, relu)
        vectors = (sums, mean, variance, weight, scale, shift, eps)
        residual = ctx.needs_input_grad[1]
        dx, dresidual, dweight, dbias = norm_backward(
            grad, x, out, other, *vectors, False, relu, batch, residual
        )
        return dx, dresidual if residual else None, dweight, dbias, *[None] * 5


def kernel_order(x: Tensor) -> str:
    """Return the order in which the kernels read and write images like x."""
    order = order_of(x)
    return "channels_last" if order == "contiguous" else order


@on_its_device
def _statistics(x: Tensor) -> Pair:
    from sparse_kernels.norm_kernels import tile_sums

    x = in_order(x, kernel_order(x))
    grid, sums, sizes, constants = _launch(x)
    tile_sums[grid](x, sums.sums, *sizes, **constants)
    return sums.mean_and_variance()


@on_its_device
def _affine(mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Pair:
    from sparse_kernels.norm_kernels import affine

    (channels,) = mean.shape
    scale, shift = torch.empty_like(mean), torch.empty_like(mean)
    vectors = (mean, variance, weight, bias, scale, shift)
    affine[(-(-channels // BC),)](*vectors, channels, eps, BC=BC)
    return scale, shift


@on_its_device
def _forward(
    x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor, relu: bool
) -> Tensor:
    from sparse_kernels.norm_kernels import normalised

    out, (x, residual) = _empty_and_ordered(x, x, residual)
    grid, _, sizes, constants = _launch(x, sums=False)
    switches = {"RELU": relu, "HAS_RESIDUAL": residual is not None}
    residual = x if residual is None else residual
    normalised[grid](x, residual, scale, shift, out, *sizes, **switches, **constants)
    return out


@on_its_device
def _sums(
    grad: Tensor, x: Tensor, out: Tensor | None, scale: Tensor, shift: Tensor, relu: bool
) -> Tensor:
    from sparse_kernels.norm_kernels import tile_gradients

    x, grad, out = (t if t is None else in_order(t, kernel_order(x)) for t in (x, grad, out))
    grid, sums, sizes, constants = _launch(x)
    switches = {"RELU": relu, "HAS_OUT": out is not None}
    images = (grad, x, x if out is None else out)
    tile_gradients[grid](*images, scale, shift, sums.sums, *sizes, **switches, **constants)
    return sums.totals()


@on_its_device
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
    from sparse_kernels.norm_kernels import normalised_grad

    dx, (grad, x, out, other) = _empty_and_ordered(x, grad, x, out, other)
    dresidual = torch.empty_like(dx) if residual else dx.new_empty(0)
    dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
    grid, _, sizes, constants = _launch(x, sums=False)
    switches = {
        "SCALED": scaled,
        "RELU": relu,
        "HAS_OUT": out is not None,
        "BATCH": batch,
        "HAS_OTHER": other is not None,
        "RESIDUAL": residual,
    }
    images = (grad, x, *(x if t is None else t for t in (out, other)))
    vectors = (sums, mean, variance, weight, scale, shift)
    written = (dx, dresidual, dweight, dbias)
    normalised_grad[grid](*images, *vectors, *written, *sizes, eps, **switches, **constants)
    return dx, dresidual, dweight, dbias


def _empty_and_ordered(x: Tensor, *images: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
    """Return an empty image like x in the kernels' order, and images in that order."""
    order = kernel_order(x)
    ordered = [t if t is None else in_order(t, order) for t in images]
    return empty_images(x, x.shape, order), ordered


def _launch(x: Tensor, sums: bool = True):
    """Return the grid of the kernels of images, room for sums by tile, M and C, and constants."""
    check_size(x)
    rows, channels = positions(x.shape, 1), x.shape[1]
    tiles = -(-rows // BM)
    partial = x.new_empty((tiles if sums else 0, 2, channels), dtype=torch.float32)
    constants = {"BM": BM, "BC": BC, "num_warps": WARPS}
    grid = (tiles, -(-channels // BC))
    return grid, TileSums(partial, BM, rows), (rows, channels), constants


def _vectors(x: Tensor) -> Pair:
    mean, variance = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))
    return mean, variance


def _backward_fake(grad, x, out, other, sums, mean, variance, weight, *rest):
    dx = _like(x)
    dresidual = torch.empty_like(dx) if rest[-1] else dx.new_empty(0)
    return dx, dresidual, torch.empty_like(weight), torch.empty_like(weight)


def _like(x: Tensor, *_: Any) -> Tensor:
    return empty_images(x, x.shape, kernel_order(x))


def _no_flops(*_: Any, **__: Any) -> int:
    return 0


batch_statistics = define(
    "batch_statistics", "(Tensor x) -> (Tensor, Tensor)", _statistics, _vectors, _no_flops
)
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
    _sums,
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
