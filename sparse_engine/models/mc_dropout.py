"""MC dropout: one network whose dropout stays on at test (Gal & Ghahramani 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from sparse_engine.models.members import log_mean_probability


class MonteCarloDropout(nn.Module):
    """In eval mode the mean probability of several passes; batch norm is as ever at test.

    The passes draw from `seed`, so a batch of images always has the same prediction, and the state
    of torch's own generators is untouched.
    """

    def __init__(self, model: nn.Module, passes: int, seed: int) -> None:
        super().__init__()
        self.model, self.passes, self.seed = model, passes, seed

    def train(self, mode: bool = True) -> MonteCarloDropout:
        """Set the mode of all modules but dropout, which is always in training mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _DropoutNd):
                module.train()
        return self

    def training_pair(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [N, K] of one pass, and the labels [N]."""
        return self.model(x), y

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, C, H, W] to the logarithm of the mean probability [N, K]."""
        devices = [x.device] if x.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)
            return log_mean_probability(torch.stack([self.model(x) for _ in range(self.passes)]))
