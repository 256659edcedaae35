"""Batch-norm statistics of weights that no training step has seen."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def estimate_batch_norm(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Replace the running statistics by the mean over batches of images [N, C, H, W].

    Everything but batch-norm runs as at test, so dropout drops nothing. The model's mode is kept.
    Source: Izmailov et al. 2018 (stochastic weight averaging), section 3.2.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    training, momenta = model.training, [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        # Without a momentum PyTorch keeps the equal-weight mean of all batches.
        norm.momentum = None
        norm.train()
    for x in images if norms else ():
        model(x)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    model.train(training)
