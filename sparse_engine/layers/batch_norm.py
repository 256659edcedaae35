"""Batch norms: running statistics, and the norm with ReLU and sum behind it in native passes."""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_engine.errors import InputError
from sparse_kernels.dispatch.backend import norm_backend
from sparse_kernels.operators.native_norm import native_norm
from sparse_kernels.triton.sums import Running


@torch.no_grad()
def estimate_batch_norm(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Replace the running statistics by the mean over batches of images [N, C, H, W].

    Everything but batch-norm runs as at test, so dropout drops nothing. The model's mode is kept.
    Source: Izmailov et al. 2018 (stochastic weight averaging), section 3.2.

    Raises:
        InputError: no batches; the statistics stay as they were.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    images = iter(images if norms else ())
    first = next(images, None)
    if norms and first is None:
        raise InputError("batch-norm statistics need at least one batch of images; found none")
    training, momenta = model.training, [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        # Without a momentum PyTorch keeps the equal-weight mean of all batches.
        norm.momentum = None
        norm.train()
    for x in chain((first,), images) if norms else ():
        model(x)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    model.train(training)


def running_statistics(norm: nn.Module) -> Running | None:
    """Return the statistics that follow a batch as nn.BatchNorm2d's do, or None."""
    if not (norm.training and norm.track_running_stats):
        return None
    momentum = norm.momentum
    if momentum is None:
        momentum = 1.0 / float(norm.num_batches_tracked + 1)
    return Running(norm.running_mean, norm.running_var, norm.num_batches_tracked, momentum)


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
    of_batch = norm.training or getattr(norm, "running_mean", None) is None
    positions = x.numel() // x.shape[1]
    fits = residual is None or (residual.shape, residual.dtype) == (x.shape, x.dtype)
    is_plain = fits and isinstance(norm, _BatchNorm)
    if not is_plain or (of_batch and positions < 2) or norm_backend(x) != "native":
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
