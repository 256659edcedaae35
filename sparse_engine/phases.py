"""A method is a list of phases; this file says what a phase is. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sparse_engine.errors import InputError
from sparse_engine.update_schedule import UpdateSchedule

# Fewer steps than this and a grown block is judged before it has had time to grow (the
# reliability condition of ITOP, Liu et al. 2021), so automatic intervals are not shorter.
SHORTEST_INTERVAL = 25
LEAST_UPDATES = 4


@dataclass(frozen=True)
class LearningRate:
    """A piecewise constant multiple of the highest learning rate, after a linear warm-up.

    milestones: (share of the phase, multiple), the first at share 0.
    warmup: share of the phase over which the rate rises from 0.
    """

    milestones: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    warmup: float = 0.0

    def at(self, step: int, steps: int) -> float:
        """Return the multiple at a step (counted from 0) of a phase."""
        if step < self.warmup * steps:
            return (step + 1) / (self.warmup * steps + 1)
        share = step / steps
        return next(m for start, m in reversed(self.milestones) if share >= start - 1e-9)


@dataclass(frozen=True)
class TopologyRule:
    """Which updates a phase makes; `stop` is the share of the phase after which there are none."""

    rule: str
    interval: int
    drop: float
    schedule: str
    stop: float | None


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    name: shown in the log; steps: optimizer steps; topology: None keeps the blocks.
    fresh: start from a new network, with a seed of its own.
    save: keep the network as a ticket at the end.
    escape: share of blocks replaced at the end, on the way to the next ticket.
    """

    name: str
    steps: int
    learning_rate: LearningRate
    topology: TopologyRule | None = None
    fresh: bool = False
    save: bool = False
    escape: float | None = None

    def update_schedule(self) -> UpdateSchedule | None:
        """Return when this phase updates its topology: never at its very end."""
        rule = self.topology
        if rule is None:
            return None
        stop = math.ceil((1.0 if rule.stop is None else rule.stop) * self.steps)
        return UpdateSchedule(rule.interval, rule.drop, stop, rule.schedule)


def split_steps(total: int, weights: Sequence[float]) -> list[int]:
    """Return whole numbers of steps in proportion to weights that sum to `total`.

    Raises:
        InputError: a phase would have no step.
    """
    whole = sum(weights)
    edges = [round(total * sum(weights[:i]) / whole) for i in range(len(weights) + 1)]
    steps = [b - a for a, b in pairwise(edges)]
    if min(steps) < 1:
        raise InputError(
            f"{total} steps are too few for {len(weights)} phases: one would have none; "
            "use more epochs, fewer members or smaller batches"
        )
    return steps


def automatic_interval(scaled: float, shortest_phase: float) -> int:
    """Return an update interval in steps that scales with the run.

    Args:
        scaled: the paper's interval, in proportion to this run's length.
        shortest_phase: steps in which updates happen, in the shortest phase that has any: it
            gets LEAST_UPDATES of them.
    """
    wanted = max(SHORTEST_INTERVAL, round(scaled))
    return max(1, min(wanted, int(shortest_phase) // (LEAST_UPDATES + 1)))
