"""How a network's budget of weights is spread over its layers, in whole blocks.

Sources: Erdos-Renyi, Mocanu et al. 2018; its kernel form (ERK), Evci et al. 2020, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparse_engine.blocks import BlockChoice, layer_block
from sparse_engine.errors import InputError, nearest
from sparse_kernels.layout import block_grid, clamp_block

DISTRIBUTIONS = ("erk", "er", "uniform")
Shape = Sequence[int]


@dataclass(frozen=True)
class LayerPlan:
    """How many blocks of a layer's weight are active."""

    name: str
    shape: tuple[int, ...]
    block: tuple[int, int]
    total: int
    active: int

    @property
    def density(self) -> float:
        """Active blocks / all blocks."""
        return self.active / self.total

    @property
    def weights(self) -> int:
        """Weights of the dense layer."""
        return math.prod(self.shape)

    @property
    def stored(self) -> int:
        """Values that the active blocks hold, padded edges included."""
        return self.active * math.prod(self.block)

    @property
    def is_dense(self) -> bool:
        """Whether every block is active: such a layer stays an ordinary module."""
        return self.active == self.total


def plan_layers(
    shapes: Mapping[str, Shape], sparsity: float, distribution: str, block: BlockChoice
) -> list[LayerPlan]:
    """Spread (1 - sparsity) of all weights over layers, in whole blocks.

    Args:
        shapes: weight shape (O, C[, R, S]) of each layer by name.
        sparsity: share of all weights that is absent, in [0, 1).
        distribution: "erk", "er" or "uniform".
        block: (BO, BC) or "auto".

    Returns:
        A plan per layer, in order. The weights (in average blocks) never exceed the budget and
        miss it by less than the smallest block that still fits somewhere.

    Raises:
        InputError: unknown distribution, sparsity out of range, or a budget too small to leave
            every layer one block.
    """
    densities = layer_densities(shapes, sparsity, distribution)
    blocks = {n: clamp_block(layer_block(block, s), s[0], s[1]) for n, s in shapes.items()}
    totals = {n: math.prod(block_grid(s, blocks[n])) for n, s in shapes.items()}
    weights = {n: math.prod(s) for n, s in shapes.items()}
    active = _whole_blocks(densities, totals, weights, 1 - sparsity)
    return [LayerPlan(n, tuple(shapes[n]), blocks[n], totals[n], active[n]) for n in shapes]


def layer_densities(
    shapes: Mapping[str, Shape], sparsity: float, distribution: str
) -> dict[str, float]:
    """Return each layer's density before rounding to blocks; arguments as in plan_layers."""
    if not 0 <= sparsity < 1:
        raise InputError(f"sparsity must be at least 0 and below 1, found {sparsity}")
    if distribution not in DISTRIBUTIONS:
        raise InputError(
            f"unknown distribution '{distribution}'{nearest(distribution, DISTRIBUTIONS)}; "
            f"choose from {', '.join(DISTRIBUTIONS)}"
        )
    if not shapes:
        raise InputError("there is no layer to make sparse: no convolution or linear layer is left")
    if distribution == "uniform" or sparsity == 0:
        return dict.fromkeys(shapes, 1 - sparsity)
    raw = {n: _raw_density(s, kernel=distribution == "erk") for n, s in shapes.items()}
    return _scale_to_budget(raw, {n: math.prod(s) for n, s in shapes.items()}, 1 - sparsity)


def _raw_density(shape: Shape, kernel: bool) -> float:
    sizes = shape if kernel else shape[:2]
    return sum(sizes) / math.prod(sizes)


def _scale_to_budget(
    raw: Mapping[str, float], weights: Mapping[str, int], density: float
) -> dict[str, float]:
    """Solve sum(min(1, scale * raw) * weights) = density * sum(weights) for the scale."""
    full: set[str] = set()
    while True:
        open_layers = [n for n in raw if n not in full]
        left = density * sum(weights.values()) - sum(weights[n] for n in full)
        scale = left / sum(raw[n] * weights[n] for n in open_layers) if open_layers else 0.0
        over = {n for n in open_layers if scale * raw[n] > 1}
        if not over:
            return {n: 1.0 if n in full else scale * raw[n] for n in raw}
        full |= over


def _whole_blocks(
    densities: Mapping[str, float],
    totals: Mapping[str, int],
    weights: Mapping[str, int],
    density: float,
) -> dict[str, int]:
    """Round to whole blocks by largest remainder, within the budget, at least one a layer."""
    size = {n: weights[n] / totals[n] for n in totals}
    ideal = {n: densities[n] * totals[n] for n in totals}
    active = {n: max(1, math.floor(ideal[n] + 1e-9)) for n in totals}
    left = density * sum(weights.values()) - sum(active[n] * size[n] for n in totals)
    slack = 1e-6 * min(size.values())
    while left < -slack:
        shrinkable = [n for n in active if active[n] > 1]
        if not shrinkable:
            smallest = sum(size.values()) / sum(weights.values())
            raise InputError(
                f"the budget leaves a layer without a block: one block in each of {len(totals)} "
                f"layers is already {smallest:.4g} of the weights, and {density:.4g} may stay; "
                "lower the sparsity, use smaller blocks, or skip layers"
            )
        most = max(shrinkable, key=lambda n: (active[n] - ideal[n]) / ideal[n])
        active[most] -= 1
        left += size[most]
    while fitting := [n for n in totals if active[n] < totals[n] and size[n] <= left + slack]:
        name = min(fitting, key=lambda n: active[n] - ideal[n])
        active[name] += 1
        left -= size[name]
    return active
