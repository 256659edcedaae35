"""Convolutions and norms one behind the other, in as few passes over memory as they can.

`convolve` runs a convolution and `normalised` puts a batch norm behind it, which is left pending, a
`PendingNorm`, until the next convolution applies it.
Where a layer runs on the Triton kernels, its input is normalised and rectified as it is loaded, and
its output gets a residual and leaves its statistics for the next norm as it is stored; see
sparse_kernels.operators.fused_convolution. Where it does not, it runs as a module between such
layers. On a CPU all do, and norms with ReLU and residual run in passes of their own.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_engine.layers.batch_norm import norm_relu, running_statistics
from sparse_engine.layers.modules import SparseConv2d
from sparse_engine.layers.rows import RowsBatchNorm2d, output_in_rows
from sparse_kernels import Norm
from sparse_kernels.dispatch.backend import backend_of, norm_backend
from sparse_kernels.functional_fused import conv2d_by_tile
from sparse_kernels.memory_order import in_order
from sparse_kernels.operators.batch_norm import kernel_order, normalise, tile_statistics
from sparse_kernels.registration import is_onnx_written
from sparse_kernels.transforms import is_transformed
from sparse_kernels.triton.sums import TileSums


class PendingNorm:
    """An activation whose batch norm and ReLU are still to come: whoever reads it applies them.

    x [N, C, H, W] is what has been stored. Every reader leaves another `x` of the same numbers, to
    be read by the next one: their gradients are then added in passes that are made anyway.
    """

    def __init__(self, x: Tensor, norm: Norm | None = None) -> None:
        self.x, self.norm = x, norm
        if norm_backend(x) == "triton":
            self.x = in_order(x, kernel_order(x))
        self._activated: Tensor | None = None

    def activated(self, residual: Tensor | None = None) -> Tensor:
        """Return what comes behind norm, residual and ReLU, stored once."""
        if self.norm is None:
            return self.x
        if self._activated is None:
            self._activated, self.x = normalise(self.x, self.norm, residual)
        return self._activated


class PendingModule(PendingNorm):
    """The same on a CPU, where no convolution applies a norm as it reads."""

    def __init__(self, x: Tensor, module: nn.Module, relu: bool) -> None:
        super().__init__(x)
        self.module, self.relu = module, relu

    def activated(self, residual: Tensor | None = None) -> Tensor:
        """Return what comes behind norm, residual and ReLU, stored once."""
        if self._activated is None:
            found = norm_relu(self.module, self.x, residual, self.relu)
            self._activated, self.x = found
        return self._activated


def normalised(norm: nn.Module, x: Tensor, relu: bool = True) -> PendingNorm:
    """Return x [N, C, H, W] with a batch norm behind it, whose running statistics follow."""
    if norm_backend(x) != "triton":
        return PendingModule(x, norm, relu)
    learnt = (norm.weight, norm.bias)
    if not norm.training and norm.running_mean is not None:
        fixed = (norm.running_mean.float(), norm.running_var.float())
        return PendingNorm(x, Norm(*fixed, *learnt, norm.eps, False, relu))
    sums = _noted(x) or tile_statistics(x)
    mean, variance, *affine = sums.batch_norm(*learnt, norm.eps, running_statistics(norm))
    return PendingNorm(x, Norm(mean, variance, *learnt, norm.eps, True, relu, *affine))


def convolve(
    conv: nn.Module, pending: PendingNorm, residual: Tensor | None = None, statistics: bool = True
) -> Tensor:
    """Return conv(pending) + residual, [N, O, P, Q].

    In training the result's statistics are taken with it by tile, for a norm that may come next.
    """
    if not is_fused(conv, pending.x):
        y = conv(pending.activated())
        return y if residual is None else y + residual
    y, sums, x = conv2d_by_tile(
        pending.x,
        conv.values,
        conv.layout,
        conv.bias,
        (conv.stride, conv.padding, conv.dilation),
        pending.norm,
        residual,
        statistics and conv.training,
    )
    conv._note_run(pending.x, y.numel() // conv.out_channels)
    pending.x = x
    if torch.compiler.is_compiling():
        y = y.view_as(y)  # torch 2.11 traces no attribute of what an autograd.Function returns
    if sums is not None:
        _note(y, sums)
    return y


class FusedResidualBlock(nn.Module):
    """The forward of a residual block, ours or torchvision's, in the passes of its convolutions.

    The only pass besides those is the sum. A shortcut is the identity, or a convolution and a norm
    in sequence.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, O, H / stride, W / stride]."""
        if not runs_fused(self.children(), x):
            return super().forward(x)
        norm, shortcut = ("norm", "shortcut") if hasattr(self, "norm1") else ("bn", "downsample")
        first = pending = PendingNorm(x)
        for number in (i for i in (1, 2, 3) if hasattr(self, f"conv{i}")):
            y = convolve(getattr(self, f"conv{number}"), pending)
            pending = normalised(getattr(self, f"{norm}{number}"), y)
        skip, projection = first.x, getattr(self, shortcut)
        if isinstance(projection, nn.Sequential):
            conv, last = projection
            skip = normalised(last, convolve(conv, first), relu=False).activated()
        return pending.activated(skip)


def runs_fused(modules: Iterable[nn.Module], x: Tensor) -> bool:
    """Return whether a part of a network, made of these modules, runs fused when it is given x."""
    if x.ndim != 4 or x.is_meta or x.shape[0] < 2:
        return False
    modules = [inner for module in modules for inner in module.modules()]
    return (
        all(_is_known(module) for module in modules if isinstance(module, _BatchNorm))
        and (norm_backend(x) == "native" or any(is_fused(module, x) for module in modules))
        and not any(_is_watched(module) for module in modules)
    )


def is_fused(conv: nn.Module, x: Tensor) -> bool:
    """Return whether a convolution of images like x runs on the kernels, with what surrounds it."""
    return (
        not is_transformed()  # their operators have no rules for transforms
        and not is_onnx_written()
        and type(conv) is SparseConv2d
        and conv._probe is None
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and x.dtype == compute_dtype(x)
        and backend_of(x, conv._layout.tensors(), conv._layout.sizes()) == "triton"
    )


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the data type in which a convolution computes with x."""
    computes = x.dtype != torch.float64 and not x.is_meta
    if computes and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _is_known(norm: nn.Module) -> bool:
    return type(norm) in (nn.BatchNorm2d, RowsBatchNorm2d) and norm.weight is not None


def _is_watched(module: nn.Module) -> bool:
    """Return whether someone waits for a module's own forward or backward."""
    after = any(hook is not output_in_rows for hook in module._forward_hooks.values())
    return bool(after or module._forward_pre_hooks or module._backward_hooks)


def _note(x: Tensor, sums: TileSums) -> None:
    """Leave the statistics of x on it, for whoever finds them there and has x unchanged."""
    x._batch_statistics = (sums, _version(x))


def _noted(x: Tensor) -> TileSums | None:
    """Return them, which are then on x no longer: a norm reads them once."""
    noted = getattr(x, "_batch_statistics", None)
    if noted is None:
        return None
    x._batch_statistics = None
    sums, version = noted
    return sums if version == _version(x) else None


def _version(x: Tensor) -> int:
    """Return how often x was changed in place; 0 where nobody counts, in a graph that is traced."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version
