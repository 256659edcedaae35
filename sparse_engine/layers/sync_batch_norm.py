"""Batch norm over the images of all processes, on CPUs, where PyTorch's does not run."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose mean and variance in training are those of all processes' images."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, C, H, W] of this process; all processes call it together."""
        if not self.training:
            return super().forward(x)
        dims = [d for d in range(x.ndim) if d != 1]
        count = float(x.numel() // x.shape[1] * dist.get_world_size())
        wide = x if x.dtype == torch.float64 else x.float()
        mean = _Sum.apply(wide.sum(dims)) / count
        centred = wide - _along(mean, x)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        self._note(mean.detach(), variance.detach() * count / max(1.0, count - 1))
        y = centred * _along((variance + self.eps).rsqrt(), x)
        if self.affine:
            y = y * _along(self.weight, x) + _along(self.bias, x)
        return y.to(x.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Sum(torch.autograd.Function):
    """The sum over processes, of values and of gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.forward(ctx, grad)


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """Let a model's batch norms see the images of all processes; state dicts stay as they are."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncedBatchNorm2d
    return model


def _along(vector: Tensor, x: Tensor) -> Tensor:
    """Return a vector [C] that multiplies channels of x [N, C, ...]."""
    return vector.view(1, -1, *[1] * (x.ndim - 2))
