"""How many blocks each layer keeps and has after a topology update, by rule.

All counts are of groups: single blocks, or those of a row of a kernel or of all its taps
(taps="row", "all").
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sparse_engine.sparsity.distribution import scale_to_budget, whole_blocks
from sparse_kernels.block_kinds import BlockKinds, Counts, within

# Spare slots of a layer / its active blocks, where budgets move between layers.
HEADROOM = 0.25


@dataclass(frozen=True)
class Budget:
    """One layer before an update.

    counts: groups in use, of each kind of block; slots: groups it can hold; final: groups after
    gradual pruning.
    """

    kinds: BlockKinds
    counts: Counts
    slots: int
    final: int

    @property
    def active(self) -> int:
        """Groups in use."""
        return sum(self.counts)

    @property
    def weights(self) -> int:
        """Weights in use."""
        return self.kinds.weights_of(self.counts)

    def at(self, active: int) -> Counts:
        """Return how many groups of each kind the layer has with so many groups."""
        if active > self.active:
            return self.kinds.fit(active, self.counts, self.kinds.groups)
        return self.kinds.fit(active, [0] * len(self.counts), self.counts)

    def weights_at(self, active: int) -> int:
        """Return the weights of so many groups."""
        return self.kinds.weights_of(self.at(active))


@dataclass(frozen=True)
class Exchange:
    """What an update does to a layer: of each kind, `kept` groups stay, and others come until
    there are `active`."""

    kept: Counts
    active: Counts


Budgets = Mapping[str, Budget]


def kept(counts: Counts, rate: float) -> Counts:
    """Return how many groups of each kind stay if the share `rate` goes.

    Below 1 one stays of every kind: were all replaced, the layer would begin again from zeros.
    """
    most = [n if rate >= 1 else max(0, n - 1) for n in counts]
    total = min(int(rate * sum(counts) + 0.5), sum(most))
    gone = within([int(rate * n + 0.5) for n in counts], total, [0] * len(counts), most)
    return tuple(n - out for n, out in zip(counts, gone))


def steady(budgets: Budgets, rate: float) -> dict[str, Exchange]:
    """Replace the share `rate` of every layer (SET, RigL)."""
    return {n: Exchange(kept(b.counts, rate), b.counts) for n, b in budgets.items()}


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
        exchanges[name] = Exchange(kept(b.at(target), rate), b.at(target))
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
    stay = {n: kept(b.counts, rate) for n, b in budgets.items()}
    left = {n: b.kinds.weights_of(stay[n]) for n, b in budgets.items()}
    room = {n: b.weights_at(b.slots) - left[n] for n, b in budgets.items()}
    dropped = sum(b.weights - left[n] for n, b in budgets.items())
    if not dropped:
        return steady(budgets, rate)
    # A layer without any gradient still takes what the others have no room for.
    least = 1e-6 * max(contributions.values()) or 1.0
    wanted = {n: max(contributions[n], least) / room[n] for n in budgets if room[n]}
    share = scale_to_budget(wanted, {n: room[n] for n in wanted}, dropped / sum(room.values()))
    ideal = {
        n: sum(stay[n]) + share.get(n, 0.0) * (b.slots - sum(stay[n])) for n, b in budgets.items()
    }
    active = whole_blocks(
        ideal,
        {n: b.slots for n, b in budgets.items()},
        {n: b.weights_at for n, b in budgets.items()},
        sum(b.weights for b in budgets.values()),
    )
    counts = {n: b.at(active[n]) for n, b in budgets.items()}
    return {n: Exchange(tuple(map(min, stay[n], counts[n])), counts[n]) for n in budgets}
