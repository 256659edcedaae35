"""Networks that predict as several members."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class MemberNetwork(nn.Module):
    """One network with M members; what it predicts is the mean of their probabilities."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members = members

    def member_logits(self, x: Tensor) -> Tensor:
        """Map images [N, C, H, W] to the logits [M, N, K] that every member has at test."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, C, H, W] to the logarithm of the mean probability [N, K]."""
        return log_mean_probability(self.member_logits(x))

    def member_models(self) -> list[nn.Module]:
        """Return the members as models of their own, which share the network's parameters."""
        return [Member(self, index) for index in range(self.members)]


class Member(nn.Module):
    """One member of a network, as a model from images [N, C, H, W] to logits [N, K]."""

    def __init__(self, network: MemberNetwork, index: int) -> None:
        super().__init__()
        self.network, self.index = network, index

    def forward(self, x: Tensor) -> Tensor:
        """Return the member's logits [N, K]."""
        return self.network.member_logits(x)[self.index]


def log_mean_probability(logits: Tensor) -> Tensor:
    """Return [N, K], the logarithm of the mean over M of softmax(logits [M, N, K])."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.log_softmax(-1, dtype=dtype).logsumexp(0) - math.log(len(logits))
