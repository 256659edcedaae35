"""Erdos-Renyi densities of layers, and their kernel form ERK, to a power. Imports no torch.

Sources: Mocanu et al. 2018; Evci et al. 2020, section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

DistributionName = Literal["erk", "er", "uniform"]
DISTRIBUTIONS: tuple[DistributionName, ...] = get_args(DistributionName)


@dataclass(frozen=True)
class ErdosRenyi:
    """Densities in proportion to ((n_in + n_out + k_h + k_w) / weights) ** power.

    kernel: False leaves the kernel's sizes out (ER).
    power: 0 gives all layers one density, 1 is the papers', above it wide layers leave more to
        narrow ones (`erk_power_scale` in RigL's released code).
    """

    kernel: bool = True
    power: float = 1.0

    def density(self, shape: Sequence[int]) -> float:
        """Return the density of a weight (O, C[, R, S]), up to a factor common to all layers."""
        sizes = shape if self.kernel else shape[:2]
        return (erk_weight(sizes) / math.prod(sizes)) ** self.power


def erk_weight(shape: Sequence[int]) -> int:
    """Return n_in + n_out + k_h + k_w of a weight: its channels, in proportion to which ERK keeps
    weights."""
    return sum(shape)
