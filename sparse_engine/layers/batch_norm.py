"""The running statistics of batch norms: how they follow batches, and are taken anew."""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_engine.errors import InputError
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
