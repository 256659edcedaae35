"""Networks that predict as several members."""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn


def training_pair(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [..., K] of a training batch, and the labels [...] they are compared with."""
    own = getattr(model, "training_pair", None)
    return own(x, y) if own is not None else (model(x), y)


def members_of(model: nn.Module) -> list[nn.Module]:
    """Return the members of a network as models that give logits [N, K]; a plain model is one."""
    own = getattr(model, "member_models", None)
    return own() if own is not None else [model]


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

    def is_whole(self, models: list[nn.Module]) -> bool:
        """Whether models are all members of this one's network, in order."""
        found = [m.index for m in models if isinstance(m, Member) and m.network is self.network]
        return found == list(range(self.network.members))


def joint_calls(members: Iterable[nn.Module]) -> list[Callable[[Tensor], Tensor]]:
    """Return functions that give logits [m, N, K], which stacked are those of models in order.

    Where all members of one network stand together, they are one call of it.
    """
    calls: list[Callable[[Tensor], Tensor]] = []
    left = list(members)
    while left:
        first = left[0]
        if isinstance(first, Member) and first.is_whole(left[: first.network.members]):
            calls.append(first.network.member_logits)
            del left[: first.network.members]
        else:
            calls.append(partial(_alone, left.pop(0)))
    return calls


def _alone(member: nn.Module, x: Tensor) -> Tensor:
    return member(x)[None]


def log_mean_probability(logits: Tensor) -> Tensor:
    """Return [N, K], the logarithm of the mean over M of softmax(logits [M, N, K])."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.log_softmax(-1, dtype=dtype).logsumexp(0) - math.log(len(logits))
