"""How a network's budget of weights is spread over its layers, in whole blocks.

Erdos-Renyi densities: erdos_renyi.py. A budget of seconds is spent in timed.py.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from sparse_engine.errors import InputError, nearest
from sparse_engine.layers.blocks import DENSE, LayerBlocks, block_for, check_patterns
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.sparsity.erdos_renyi import DISTRIBUTIONS, DistributionName, ErdosRenyi
from sparse_kernels.layout import Taps

BY_NAME: dict[DistributionName, ErdosRenyi] = {
    "erk": ErdosRenyi(),
    "er": ErdosRenyi(kernel=False),
    "uniform": ErdosRenyi(power=0.0),
}
Shape = Sequence[int]
# By name, or each layer's density, which other sparsities have in proportion.
Distribution = DistributionName | ErdosRenyi | Mapping[str, float]


@dataclass(frozen=True)
class Sparsity:
    """How sparse a network is, how that is spread over its layers, and in which blocks.

    sparsity: share of all weights that is absent, in [0, 1).
    distribution: "erk", "er", "uniform", an ErdosRenyi of some power, or a density for each
        layer's name, which all are scaled by one factor to meet the sparsity, up to 1.
    block: (BO, BC) or "auto", or these by patterns of layer names, of which the first that
        matches counts; "dense" there means a layer with all of its weights, which leaves the
        others less.
    taps: "each", "row" or "all"; a layer has a whole number of groups of 1, S or R * S blocks.
    """

    sparsity: float
    distribution: Distribution = "erk"
    block: LayerBlocks = (32, 32)
    taps: Taps = "each"

    def full(self, shapes: Mapping[str, Shape]) -> list[LayerPlan]:
        """Return the plans of layers with every block active; arguments and errors as in plans."""
        check_patterns(self.block, shapes)
        return [
            LayerPlan.full(name, shape, block_for(name, self.block), self.taps)
            for name, shape in shapes.items()
        ]

    def plans(self, shapes: Mapping[str, Shape]) -> list[LayerPlan]:
        """Spread (1 - sparsity) of all weights over layers, in whole blocks.

        Args:
            shapes: weight shape (O, C[, R, S]) of each layer by name.

        Returns:
            A plan per layer, in order. The weights never exceed the budget and miss it by less than
            the next block (or group) of any layer.

        Raises:
            InputError: unknown distribution, densities of other layers, sparsity out of range, a
                pattern that matches no layer, or a budget too small to leave every layer one block.
        """
        dense = [name for name in shapes if block_for(name, self.block) == DENSE]
        densities = layer_densities(shapes, self.sparsity, self.distribution, dense)
        full = self.full(shapes)
        totals = {p.name: p.total // p.group for p in full}
        weights = {p.name: p.kinds.weights_in for p in full}
        ideal = {p.name: p.kinds.groups_at(densities[p.name]) for p in full}
        budget = (1 - self.sparsity) * sum(p.weights for p in full)
        groups = whole_blocks(ideal, totals, weights, budget)
        return [replace(p, active=groups[p.name] * p.group) for p in full]


def layer_densities(
    shapes: Mapping[str, Shape],
    sparsity: float,
    distribution: Distribution,
    dense: Sequence[str] = (),
) -> dict[str, float]:
    """Return each layer's density before rounding to blocks.

    Args:
        shapes: see Sparsity.plans; sparsity, distribution: see Sparsity.
        dense: names of layers with density 1, whatever the distribution says.
    """
    if not 0 <= sparsity < 1:
        raise InputError(f"sparsity must be at least 0 and below 1, found {sparsity}")
    if not shapes:
        raise InputError("there is no layer to make sparse: no nn.Conv2d or nn.Linear is left")
    raw = _raw_densities(shapes, distribution)
    if sparsity == 0 or (distribution == "uniform" and not dense):
        return dict.fromkeys(shapes, 1 - sparsity)
    weights = {n: math.prod(s) for n, s in shapes.items()}
    share = sum(weights[n] for n in dense) / sum(weights.values())
    if share > 1 - sparsity:
        raise InputError(
            f"layers that stay dense ('{dense[0]}', {len(dense)} in all) have {share:.4g} of the "
            f"weights, and {1 - sparsity:.4g} may stay; lower the sparsity, or give them blocks"
        )
    return scale_to_budget(raw, weights, 1 - sparsity, dense)


def total_sparsity(plans: Sequence[LayerPlan]) -> float:
    """Return the share of all weights that is absent."""
    return 1 - sum(p.weights * p.density for p in plans) / sum(p.weights for p in plans)


def _raw_densities(shapes: Mapping[str, Shape], distribution: Distribution) -> dict[str, float]:
    """Return the densities of layers up to a common factor."""
    if isinstance(distribution, str):
        if distribution not in BY_NAME:
            raise InputError(
                f"unknown distribution '{distribution}'{nearest(distribution, DISTRIBUTIONS)}; "
                f"choose from {', '.join(DISTRIBUTIONS)}"
            )
        distribution = BY_NAME[distribution]
    if isinstance(distribution, ErdosRenyi):
        return {n: distribution.density(s) for n, s in shapes.items()}
    if different := sorted(set(shapes) ^ set(distribution)):
        raise InputError(
            f"the densities are of another network: layer '{different[0]}' is not in both; take "
            "the densities out of the configuration to choose them anew"
        )
    for name, density in distribution.items():
        if (
            isinstance(density, bool)
            or not isinstance(density, int | float)
            or not 0 < density <= 1
        ):
            raise InputError(
                f"the density of layer '{name}' must be above 0 and at most 1, found {density!r}"
            )
    return dict(distribution)


def scale_to_budget(
    raw: Mapping[str, float],
    weights: Mapping[str, int],
    density: float,
    dense: Collection[str] = (),
) -> dict[str, float]:
    """Return min(1, scale * raw), with the scale that makes its mean over all weights `density`.

    Layers in `dense` have 1.
    """
    full = set(dense)
    while True:
        open_layers = [n for n in raw if n not in full]
        left = density * sum(weights.values()) - sum(weights[n] for n in full)
        scale = left / sum(raw[n] * weights[n] for n in open_layers) if open_layers else 0.0
        over = {n for n in open_layers if scale * raw[n] > 1}
        if not over:
            return {n: 1.0 if n in full else scale * raw[n] for n in raw}
        full |= over


def whole_blocks(
    ideal: Mapping[str, float],
    most: Mapping[str, int],
    weights: Mapping[str, Callable[[int], int]],
    budget: float,
) -> dict[str, int]:
    """Round to whole blocks by largest remainder, within the budget, at least one a layer.

    Args:
        ideal: blocks of each layer before rounding.
        most: blocks that a layer can have.
        weights: of a layer by its number of blocks; rises with each.
        budget: weights of all blocks together.

    Raises:
        InputError: one block in each layer is more than the budget.
    """
    active = {n: max(1, math.floor(ideal[n] + 1e-9)) for n in most}
    first = {n: weights[n](1) for n in most}
    left = budget - sum(weights[n](active[n]) for n in most)
    slack = 1e-6 * min(first.values())
    while left < -slack:
        shrinkable = [n for n in active if active[n] > 1]
        if not shrinkable:
            whole = sum(weights[n](most[n]) for n in most)
            raise InputError(
                f"the budget leaves a layer without a block: one block in each of {len(most)} "
                f"layers is already {sum(first.values()) / whole:.4g} of the weights, and "
                f"{budget / whole:.4g} may stay; lower the sparsity, use smaller blocks, or skip "
                "layers"
            )
        largest = max(shrinkable, key=lambda n: (active[n] - ideal[n]) / ideal[n])
        active[largest] -= 1
        left += _next_block(weights[largest], active[largest])
    size = {n: _next_block(weights[n], active[n]) for n in most}
    while fitting := [n for n in most if active[n] < most[n] and size[n] <= left + slack]:
        name = min(fitting, key=lambda n: active[n] - ideal[n])
        active[name] += 1
        left -= size[name]
        size[name] = _next_block(weights[name], active[name])
    return active


def _next_block(weights: Callable[[int], int], active: int) -> int:
    """Return the weights of the block that comes after `active` blocks."""
    return weights(active + 1) - weights(active)
