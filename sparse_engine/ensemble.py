"""Several networks that predict as one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TicketEnsemble(nn.Module):
    """The mean of its members' softmax probabilities (FreeTickets, Liu et al. 2022).

    Members map the same input to logits [N, K]. Raises ValueError when there are none.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(members) == 0:
            raise ValueError("an ensemble needs at least one member")
        self.members = nn.ModuleList(members)

    def __len__(self) -> int:
        return len(self.members)

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of N inputs to mean probabilities [N, K]."""
        return self.member_probabilities(x).mean(0)

    def member_probabilities(self, x: Tensor) -> Tensor:
        """Map a batch of N inputs to each member's probabilities [M, N, K], float32 or wider.

        Raises ValueError when members have different numbers of classes.
        """
        logits = [member(x) for member in self.members]
        counts = [member_logits.shape[-1] for member_logits in logits]
        if len(set(counts)) > 1:
            raise ValueError(f"members must have the same number of classes, not {counts}")
        return torch.stack([_probabilities(member_logits) for member_logits in logits])


def _probabilities(logits: Tensor) -> Tensor:
    # Half-precision probabilities would round away what the members disagree on.
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
