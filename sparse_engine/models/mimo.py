"""MIMO: M subnetworks in one, each with its own input and its own head (Havasi et al. 2021)."""

import torch
from torch import Tensor, nn

from sparse_engine.models.members import MemberNetwork


class MIMO(MemberNetwork):
    """A network from M images, stacked along channels, to M predictions.

    network: maps [N, M * C, H, W] to [N, M * K].
    batch_repetition: how many times each image of a batch is an input of each member.
    input_repetition: share of the inputs that are one image for all members; the others are
        independent permutations of the batch (section 2 and appendix).
    """

    def __init__(
        self, network: nn.Module, members: int, batch_repetition: int, input_repetition: float
    ) -> None:
        super().__init__(members)
        self.network = network
        self.batch_repetition, self.input_repetition = batch_repetition, input_repetition

    def training_pair(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [M, N * batch_repetition, K] and the labels of each member's inputs."""
        chosen = self.draw_inputs(len(x), x.device)
        return self._logits(x[chosen].transpose(0, 1).flatten(1, 2)), y[chosen]

    def member_logits(self, x: Tensor) -> Tensor:
        """Map images [N, C, H, W], shown to all members, to logits [M, N, K]."""
        return self._logits(x.repeat(1, self.members, 1, 1))

    def draw_inputs(self, images: int, device: torch.device) -> Tensor:
        """Return which images of a batch are each member's inputs, [M, N * batch_repetition]."""
        order = torch.randperm(images, device=device).repeat(self.batch_repetition)
        equal, shuffled = order.tensor_split([round(self.input_repetition * len(order))])
        orders = [
            torch.cat([equal, shuffled[torch.randperm(len(shuffled), device=device)]])
            for _ in range(self.members)
        ]
        return torch.stack(orders)

    def _logits(self, stacked: Tensor) -> Tensor:
        stacked = stacked.to(memory_format=torch.channels_last)
        return self.network(stacked).unflatten(1, (self.members, -1)).transpose(0, 1)
