"""TreeNet: members with a common trunk and branches of their own (Lee et al. 2015, section 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_engine.models.members import MemberNetwork


class TreeNet(MemberNetwork):
    """A trunk whose features go into M branches.

    The loss is a sum over members, so a branch learns as in a network of its own, and the trunk's
    gradient is the sum of what the branches send.
    """

    def __init__(self, trunk: nn.Module, branches: Sequence[nn.Module]) -> None:
        super().__init__(len(branches))
        self.trunk, self.branches = trunk, nn.ModuleList(branches)

    def training_pair(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [M, N, K] and labels [M, N]: every member sees every image."""
        return self.member_logits(x), y.expand(self.members, -1)

    def member_logits(self, x: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [M, N, K]; the trunk runs once."""
        features = self.trunk(x)
        return torch.stack([branch(features) for branch in self.branches])

    def member_models(self) -> list[nn.Module]:
        """Return the members as models of their own, which share the network's parameters."""
        return [nn.Sequential(self.trunk, branch) for branch in self.branches]
