"""Batch norm with the ReLU and the sum behind it, on a CPU in passes of the native kernels."""

import torch
from torch import Tensor, nn

from sparse_engine.layers.batch_norm import running_statistics
from sparse_kernels.dispatch.backend import norm_backend
from sparse_kernels.operators.native_norm import native_norm


def norm_relu(
    norm: nn.Module, x: Tensor, residual: Tensor | None = None, relu: bool = True
) -> tuple[Tensor, Tensor]:
    """Return relu(norm(x) + residual), [N, C, H, W], and x.

    The native kernels compute it where they save time, elsewhere PyTorch's operators; the numbers
    are the same but for rounding. Whoever else reads x should read the one returned: its gradient
    is then added in a pass that is made anyway.

    Args:
        norm: nn.BatchNorm2d, whose running statistics follow.
        x: [N, C, H, W].
        residual: as x.
        relu: leave it out if False.
    """
    of_batch = norm.training or norm.running_mean is None
    positions = x.numel() // x.shape[1]
    fits = residual is None or (residual.shape, residual.dtype) == (x.shape, x.dtype)
    if not fits or (of_batch and positions < 2) or norm_backend(x) != "native":
        y = norm(x)
        y = y if residual is None else y + residual
        return torch.relu(y) if relu else y, x
    fixed = None if of_batch else (norm.running_mean, norm.running_var)
    learnt = (norm.weight, norm.bias, norm.eps)
    y, x, moments = native_norm(x, *learnt, fixed=fixed, residual=residual, relu=relu)
    if norm.training:
        _follow(norm, moments, positions)
    return y, x


@torch.no_grad()
def _follow(norm: nn.Module, moments: Tensor, positions: int) -> None:
    """Move running statistics to mean and biased variance [2, C] of so many positions."""
    running = running_statistics(norm)
    if running is None:
        return
    mean, variance = moments
    running.batches.add_(1)
    running.mean.lerp_(mean.to(running.mean.dtype), running.momentum)
    unbiased = variance * (positions / (positions - 1))
    running.variance.lerp_(unbiased.to(running.variance.dtype), running.momentum)
