"""How the channels of M members lie in one tensor, slice by slice, and modules that move them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_engine.errors import InputError

UNGROUPED = "run the members one by one"


class MemberSlices(NamedTuple):
    """Slices of one stride, of which each member has one; what is left of a slice is padding.

    channels: of a member, or a divisor of them where pixels were flattened into channels.
    stride: from one member's first channel to the next one's, by the same unit.
    shared: all members read one slice.
    """

    channels: int
    stride: int
    shared: bool

    def times(self, channels: int) -> MemberSlices:
        """Return the same in channels, for a layer that reads so many of each member."""
        if channels % self.channels:
            raise InputError(f"{channels} channels do not come from {self.channels}")
        factor = channels // self.channels
        return MemberSlices(channels, factor * self.stride, self.shared)


def padded_slices(tensors: Sequence[Any], stride: int, fill: float = 0.0) -> Tensor | None:
    """Return members' tensors one after another, each padded along its first dimension."""
    if tensors[0] is None:
        return None
    after = [0, 0] * (tensors[0].ndim - 1)
    return torch.cat([F.pad(t.detach(), (*after, 0, stride - len(t)), value=fill) for t in tensors])


class JoinInputs(nn.Module):
    """Puts members' own inputs side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [M, N, C, ...] to [N, M * C, ...]."""
        return x.transpose(0, 1).flatten(1, 2)


class Replicate(nn.Module):
    """Gives every member its own copy of what they share."""

    def __init__(self, members: int, dimension: int) -> None:
        super().__init__()
        self.members, self.dimension = members, dimension

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, ...] to [N, M * C, ...]."""
        return torch.cat([x] * self.members, self.dimension)


class Restride(nn.Module):
    """Changes the padding between members."""

    def __init__(self, members: int, stride: int, dimension: int) -> None:
        super().__init__()
        self.members, self.stride, self.dimension = members, stride, dimension

    def forward(self, x: Tensor) -> Tensor:
        """Map M slices of any stride to M of this one; what is cut off is padding."""
        parts = x.tensor_split(self.members, self.dimension)
        after = 0 if self.dimension == -1 else x.ndim - 1 - self.dimension
        pad = [0, 0] * after + [0, self.stride - parts[0].shape[self.dimension]]
        return torch.cat([F.pad(part, pad) for part in parts], self.dimension)


class SplitLogits(nn.Module):
    """Takes members' logits apart."""

    def __init__(self, members: int, classes: int) -> None:
        super().__init__()
        self.members, self.classes = members, classes

    def forward(self, y: Tensor) -> Tensor:
        """Map [N, M * stride] to [M, N, K]."""
        return y.unflatten(1, (self.members, -1))[:, :, : self.classes].transpose(0, 1)
