"""Batch norm with its ReLU and a residual, in as few passes over memory as its arithmetic takes.

    z = relu((x - mean) / sqrt(variance + eps) * weight + bias + residual)

`Norm.apply` is the definition. `normalise` does the same with the Triton kernels: one pass forward,
and two backward, of which the first is left out where a convolution's passes have made its sums
(fused_convolution.py). mean and variance are numbers that somebody has taken before, often while x
was stored.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_kernels.memory_order import empty_images, in_order, order_of
from sparse_kernels.registration import define, positions
from sparse_kernels.transforms import refuse_batches
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

    def affine(self) -> Pair:
        """Return scale and shift, made by a kernel if nobody has taken them."""
        if self.scale is None or self.shift is None:
            return norm_affine(self.mean, self.variance, self.weight, self.bias, self.eps)
        return self.scale, self.shift


def normalise(x: Tensor, norm: Norm, residual: Tensor | None = None) -> Pair:
    """Return z [N, C, H, W] and x, by the Triton kernels.

    Whoever else reads x should read the one returned: its gradient is then added in the same pass.
    """
    return _Normalise.apply(x, residual, norm.weight, norm.bias, norm)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, residual, weight, bias, norm: Norm):
        ctx.set_materialize_grads(False)
        scale, shift = norm.affine()
        z = norm_forward(x, residual, scale, shift, norm.relu)
        # Only with a residual does x not say which part was negative.
        out = z if norm.relu and residual is not None else None
        ctx.save_for_backward(x, out, norm.mean, norm.variance, weight, scale, shift)
        ctx.numbers = {"eps": norm.eps, "relu": norm.relu, "batch": norm.batch}
        return z, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, other: Tensor | None):
        refuse_batches(grad)
        refuse_batches(other)
        if grad is None:
            return other, None, None, None, None
        x, out, *vectors, scale, shift = ctx.saved_tensors
        residual = ctx.needs_input_grad[1]
        grad = in_order(grad, kernel_order(x))
        sums = norm_sums(grad, x, out, scale, shift, ctx.numbers["relu"])
        dx, dresidual, dweight, dbias = norm_backward(
            *(grad, x, out, other, sums, *vectors, scale, shift),
            **ctx.numbers,
            scaled=False,
            residual=residual,
        )
        return dx, dresidual if residual else None, dweight, dbias, None


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
    _launch(tile_sums, x=x, partial=sums)
    return sums


def _sums_fake(x: Tensor) -> Tensor:
    return x.new_empty((-(-positions(x.shape, 1) // BM), 2, x.shape[1]), dtype=torch.float32)


def _affine(mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Pair:
    from sparse_kernels.triton.batch_norm_kernels import affine

    scale, shift = torch.empty_like(mean), torch.empty_like(mean)
    vectors = {"mean": mean, "variance": variance, "weight": weight, "bias": bias}
    written = {"scale": scale, "shift": shift}
    launch(mean, affine, (-(-len(mean) // BC),), **vectors, **written, C=len(mean), eps=eps, BC=BC)
    return scale, shift


def _forward(
    x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor, relu: bool
) -> Tensor:
    from sparse_kernels.triton.batch_norm_kernels import normalised

    out, (x, residual) = _like(x), _ordered(x, x, residual)
    _launch(normalised, x=x, residual=residual, scale=scale, shift=shift, out=out, RELU=relu)
    return out


def scaled(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """Return scale * x + shift [N, C, H, W], plus residual, rectified, by PyTorch's operators."""
    z = x.float() * scale[:, None, None] + shift[:, None, None]
    z = z if residual is None else z + residual.float()
    return (z.relu() if relu else z).to(x.dtype)


def _affine_defined(mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float):
    scale = weight.float() / (variance + eps).sqrt()
    return scale, bias.float() - mean * scale


def _forward_defined(x, residual, scale, shift, relu):
    return in_order(scaled(x, scale, shift, residual, relu), kernel_order(x))


def _gradient_sums(
    grad: Tensor, x: Tensor, out: Tensor | None, scale: Tensor, shift: Tensor, relu: bool
) -> Tensor:
    from sparse_kernels.triton.batch_norm_kernels import tile_gradients

    x, grad, out = _ordered(x, x, grad, out)
    sums = _sums_fake(x)
    vectors = {"scale": scale, "shift": shift, "partial": sums}
    _launch(tile_gradients, grad=grad, x=x, out=out, **vectors, RELU=relu)
    return TileSums(sums, positions(x.shape, 1)).totals()


def _backward(
    grad,
    x,
    out,
    other,
    sums,
    mean,
    variance,
    weight,
    scale,
    shift,
    eps,
    scaled,
    relu,
    batch,
    residual,
):
    from sparse_kernels.triton.batch_norm_kernels import normalised_grad

    dx, (grad, x, out, other) = _like(x), _ordered(x, grad, x, out, other)
    dresidual = torch.empty_like(dx) if residual else None
    dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
    images = {"grad": grad, "x": x, "out": out, "other": other, "dx": dx, "dresidual": dresidual}
    vectors = {"mean": mean, "variance": variance, "weight": weight, "scale": scale, "shift": shift}
    written = {"dweight": dweight, "dbias": dbias}
    switches = {"SCALED": scaled, "RELU": relu, "BATCH": batch}
    _launch(normalised_grad, **images, sums=sums, **vectors, **written, eps=eps, **switches)
    return dx, dx.new_empty(0) if dresidual is None else dresidual, dweight, dbias


def _ordered(x: Tensor, *images: Tensor | None) -> list[Tensor | None]:
    """Return images in the order in which the kernels read x."""
    order = kernel_order(x)
    return [image if image is None else in_order(image, order) for image in images]


def _launch(kernel: Any, *, x: Tensor, **arguments: Any) -> None:
    """Launch a kernel of images like x, which takes arguments, M and C."""
    check_size(x)
    height, channels = positions(x.shape, 1), x.shape[1]
    grid = (-(-height // BM), -(-channels // BC))
    launch(x, kernel, grid, x=x, **arguments, M=height, C=channels, BM=BM, BC=BC, num_warps=WARPS)


def _backward_fake(grad, x, out, other, sums, mean, variance, weight, *rest):
    dx, (*_, residual) = _like(x), rest
    dresidual = torch.empty_like(dx) if residual else dx.new_empty(0)
    return dx, dresidual, torch.empty_like(weight), torch.empty_like(weight)


def _like(x: Tensor, *_: Any) -> Tensor:
    return empty_images(x, x.shape, kernel_order(x))


norm_tile_sums = define("norm_tile_sums", "(Tensor x) -> Tensor", _tile_sums, _sums_fake)
norm_affine = define(
    "norm_affine",
    "(Tensor mean, Tensor variance, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
    _affine,
    lambda mean, *_: (torch.empty_like(mean), torch.empty_like(mean)),
    definition=_affine_defined,
)
norm_forward = define(
    "norm_forward",
    "(Tensor x, Tensor? residual, Tensor scale, Tensor shift, bool relu) -> Tensor",
    _forward,
    _like,
    definition=_forward_defined,
)
norm_sums = define(
    "norm_sums",
    "(Tensor grad, Tensor x, Tensor? out, Tensor scale, Tensor shift, bool relu) -> Tensor",
    _gradient_sums,
    lambda grad, x, *_: x.new_empty((2, x.shape[1]), dtype=torch.float32),
)
# grad: of z; `scaled` if it is past ReLU and scale already, as a convolution's input gradient is.
# out: z, where it is needed to say which part was negative. other: another gradient of x, to be
# added. sums: float32 [2, C], of g and g * x, where g is the gradient before the ReLU.
norm_backward = define(
    "norm_backward",
    "(Tensor grad, Tensor x, Tensor? out, Tensor? other, Tensor sums, "
    "Tensor mean, Tensor variance, Tensor weight, Tensor scale, Tensor shift, float eps, "
    "bool scaled, bool relu, bool batch, bool residual) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
