"""The distribution `timed`: a budget of seconds, spent so that channels keep most connections.

An Erdos-Renyi density gives every channel the same number of connections c, whatever its layer: a
layer's active weights over n_in + n_out (ER), + k_h + k_w (ERK). For a given number of weights
that is what any concave utility of c, summed over channels, is largest for. The one used here is
-1/c, so that the score is the harmonic mean of the channels' connections; `timed` makes it largest
for given seconds, which are measured (layer_times.py). A layer whose blocks run slowly then pays
for it with density, and none is starved. Other utilities trade more or less evenly (Mo and Walrand
2000, alpha-fairness with alpha = 2); docs/design.md says what they gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparse_engine.errors import InputError
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.sparsity.erdos_renyi import erk_weight

# Numbers of blocks to choose from in a layer: with more blocks than these, neighbours are less
# than a hundredth apart.
MOST_CHOICES = 1000


@dataclass(frozen=True)
class TimeCurve:
    """Seconds that a layer's forward and gradients take in a step, by its active blocks.

    active: from one block (or group) to all, which is the dense layer; seconds: at each.
    """

    active: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def dense(self) -> float:
        """Seconds of the dense layer."""
        return self.seconds[-1]

    def at(self, active: int | np.ndarray) -> np.ndarray:
        """Return the seconds of any number of blocks, on straight lines between those known."""
        return np.interp(active, self.active, self.seconds)


Curves = Mapping[str, TimeCurve]


def score(plans: Sequence[LayerPlan]) -> float:
    """Return the harmonic mean of a channel's connections, over the channels of all layers.

    It is what ERK makes largest for a number of weights, and `timed` for a time.
    """
    scarcity = sum(float(_scarcity(plan, plan.active)) for plan in plans)
    return sum(erk_weight(plan.shape) for plan in plans) / scarcity


def time_ratio(plans: Sequence[LayerPlan], curves: Curves) -> float:
    """Return the seconds of planned layers over those of the dense ones."""
    planned = sum(float(curves[p.name].at(p.active)) for p in plans)
    return planned / sum(curves[p.name].dense for p in plans)


def timed_plans(full: Sequence[LayerPlan], curves: Curves, share: float) -> list[LayerPlan]:
    """Return the plans with the highest score whose time is within a share of the dense time.

    A price of a second, found by bisection, chooses each layer's blocks by itself; what jumps in
    the curves then leave over goes, block by block, where it adds most for its time.

    Args:
        full: plans of all layers with every block active.
        curves: of every layer.
        share: of the summed seconds of the dense layers, in (0, 1].

    Raises:
        InputError: the fewest blocks take longer than that.
    """
    choices = [_Choices.of(plan, curves[plan.name]) for plan in full]
    dense = sum(curves[plan.name].dense for plan in full)
    budget = share * dense
    least = sum(choice.seconds[0] for choice in choices)
    if least > budget:
        raise InputError(
            f"the time budget {share:g} is out of reach: with the fewest blocks the layers still "
            f"take {least / dense:.3f} of their dense time; raise --time-budget, or use other "
            "blocks"
        )
    picked = _at_highest_spending(choices, budget)
    _spend_the_rest(choices, picked, budget)
    return [
        replace(plan, active=int(choice.active[pick]))
        for plan, choice, pick in zip(full, choices, picked)
    ]


@dataclass(frozen=True)
class _Choices:
    """Numbers of blocks of one layer worth choosing: each takes longer than all before."""

    active: np.ndarray
    seconds: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, plan: LayerPlan, curve: TimeCurve) -> _Choices:
        """Leave out what takes no less than something denser."""
        groups = plan.total // plan.group
        counts = np.arange(1, groups + 1)
        if groups > MOST_CHOICES:
            counts = np.unique(np.geomspace(1, groups, MOST_CHOICES).round().astype(int))
        active = counts * plan.group
        seconds = curve.at(active)
        denser = np.minimum.accumulate(seconds[::-1])[::-1]
        worth = seconds < np.append(denser[1:], np.inf)
        return cls(active[worth], seconds[worth], -_scarcity(plan, active[worth]))


def _scarcity(plan: LayerPlan, active: int | np.ndarray) -> np.ndarray:
    """Return the sum over a layer's channels of 1 / connections, by its active blocks."""
    return erk_weight(plan.shape) ** 2 / plan.kinds.weights_in(np.asarray(active) // plan.group)


def _at_highest_spending(choices: Sequence[_Choices], budget: float) -> list[int]:
    """Return the choices at the lowest price of a second for which they fit into the budget."""

    def at(price: float) -> list[int]:
        return [int(np.argmax(c.score - price * c.seconds)) for c in choices]

    def fits(picked: Sequence[int]) -> bool:
        return sum(c.seconds[i] for c, i in zip(choices, picked)) <= budget

    if fits(picked := at(0.0)):
        return picked
    low, high = 0.0, 1.0
    while not fits(at(high)):
        low, high = high, 4 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(at(middle)) else (middle, high)
    return at(high)


def _spend_the_rest(choices: Sequence[_Choices], picked: list[int], budget: float) -> None:
    """Raise single layers, the most gain for its time first, while one still fits; in place."""
    while True:
        left = budget - sum(c.seconds[i] for c, i in zip(choices, picked))
        best = (0.0, 0, 0)
        for layer, (choice, now) in enumerate(zip(choices, picked)):
            last = int(np.searchsorted(choice.seconds, choice.seconds[now] + left, "right"))
            if last > now + 1:
                extra = choice.seconds[now + 1 : last] - choice.seconds[now]
                rate = (choice.score[now + 1 : last] - choice.score[now]) / extra
                step = int(np.argmax(rate))
                best = max(best, (float(rate[step]), layer, now + 1 + step))
        if best[0] <= 0:
            return
        picked[best[1]] = best[2]
