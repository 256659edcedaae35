"""How many blocks each layer keeps and has after a topology update, by rule. Imports no torch.

All counts are of groups: single blocks, or with taps="all" the blocks of all taps.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sparse_engine.sparsity.distribution import scale_to_budget, whole_blocks

# Spare slots of a layer / its active blocks, where budgets move between layers.
HEADROOM = 0.25


@dataclass(frozen=True)
class Budget:
    """One layer before an update.

    active: groups in use; slots: groups it can hold; final: groups after gradual pruning;
    size: weights in a group.
    """

    active: int
    slots: int
    final: int
    size: float

    def kept(self, rate: float) -> int:
        """Return how many active groups stay if the share `rate` goes."""
        return self.active - int(rate * self.active + 0.5)


@dataclass(frozen=True)
class Exchange:
    """What an update does to a layer: `kept` groups stay, others come until there are `active`."""

    kept: int
    active: int


Budgets = Mapping[str, Budget]


def steady(budgets: Budgets, rate: float) -> dict[str, Exchange]:
    """Replace the share `rate` of every layer (SET, RigL)."""
    return {n: Exchange(b.kept(rate), b.active) for n, b in budgets.items()}


def gradual(budgets: Budgets, rate: float, pruned: float) -> dict[str, Exchange]:
    """Prune every layer towards its final count, then replace the share `rate` of what is left.

    Source: GraNet, Liu et al. 2021, which ranks the weights of all layers together; here every
    layer goes from its count in the denser network to its count in the final one, so that costs
    are known before a run and an update need not wait for the device.

    Args:
        pruned: share of the pruning that is done after this update.
    """
    exchanges = {}
    for name, b in budgets.items():
        target = min(b.active, b.final + int((b.slots - b.final) * (1 - pruned) + 0.5))
        exchanges[name] = Exchange(target - int(rate * target + 0.5), target)
    return exchanges


def redistributed(
    budgets: Budgets, rate: float, contributions: Mapping[str, float]
) -> dict[str, Exchange]:
    """Drop the share `rate` of every layer, and grow as many weights where they contribute most.

    Source: SNFS, Dettmers & Zettlemoyer 2019: layers share what was dropped in proportion to
    their contributions. A layer grows up to its slots; what it cannot take goes to the others.

    Args:
        contributions: mean momentum magnitude of each layer's active weights, at least 0.
    """
    kept = {n: b.kept(rate) for n, b in budgets.items()}
    room = {n: (b.slots - kept[n]) * b.size for n, b in budgets.items()}
    dropped = sum((b.active - kept[n]) * b.size for n, b in budgets.items())
    if not dropped:
        return steady(budgets, rate)
    # A layer without any gradient still takes what the others have no room for.
    least = 1e-6 * max(contributions.values()) or 1.0
    wanted = {n: max(contributions[n], least) / room[n] for n in budgets if room[n]}
    share = scale_to_budget(wanted, {n: room[n] for n in wanted}, dropped / sum(room.values()))
    ideal = {n: kept[n] + share.get(n, 0.0) * (b.slots - kept[n]) for n, b in budgets.items()}
    active = whole_blocks(
        ideal,
        {n: b.slots for n, b in budgets.items()},
        {n: b.size for n, b in budgets.items()},
        sum(b.active * b.size for b in budgets.values()),
    )
    return {n: Exchange(min(kept[n], active[n]), active[n]) for n in budgets}
