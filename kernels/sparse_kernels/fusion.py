"""What a layer's passes do besides multiplying: the transform of the input, ReLU, statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fusion:
    """Options of a pass; see fusion_kernels.py.

    scale, shift: float32 [C], the input is read as scale * x + shift; both or neither.
    relu_input: its negative part then becomes zero.
    relu: the output's negative part becomes zero (forward).
    statistics: write the output's sums for batch norm (forward).
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    relu_input: bool = False
    relu: bool = False
    statistics: bool = False

    @property
    def input_kind(self) -> str:
        """The kernels' INPUT."""
        if self.scale is None:
            return "plain"
        return "affine_relu" if self.relu_input else "affine"

    def writes_sums(self, transposed: bool) -> bool:
        """Whether a gather pass returns two sums by tile and channel."""
        return self.scale is not None if transposed else self.statistics

    def name(self, transposed: bool) -> str:
        """Return what the compiled kernel depends on, as a word."""
        if transposed:
            return self.input_kind
        switches = (("relu", self.relu), ("statistics", self.statistics))
        return "+".join([self.input_kind, *(name for name, on in switches if on)])

    def constants(self, transposed: bool) -> dict[str, Any]:
        """Return the constants of a gather kernel."""
        return {
            "INPUT": self.input_kind,
            "RELU": self.relu and not transposed,
            "STATISTICS": self.statistics and not transposed,
        }


PLAIN = Fusion()


class TileSums(NamedTuple):
    """What a gather pass wrote by tile: float32 [tiles, 2, C], of `size` positions each.

    Only the last tile may have fewer, so that there are `positions` in all.
    """

    sums: Tensor
    size: int
    positions: int

    def totals(self) -> tuple[Tensor, Tensor]:
        """Return both sums over all tiles, [C] each."""
        first, second = self.sums.sum(0)
        return first, second

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance [C] from the tiles' means and squared deviations.

        Source: Chan, Golub and LeVeque 1979, "Updating formulae", which lose nothing to
        cancellation where the mean is large.
        """
        means, deviations = self.sums.unbind(1)
        counts = torch.full_like(means[:, :1], self.size)
        counts[-1:].fill_(self.positions - (len(means) - 1) * self.size)
        mean = (means * counts).sum(0) / self.positions
        between = ((means - mean).square() * counts).sum(0)
        return mean, (deviations.sum(0) + between) / self.positions
