"""A method is a list of phases; this file says what a phase is. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sparse_engine.errors import InputError
from sparse_engine.methods.actions import Action
from sparse_engine.methods.learning_rate import Shape
from sparse_engine.methods.losses import CROSS_ENTROPY, Loss
from sparse_engine.sparsity.update_schedule import UpdateSchedule

# Fewer steps than this and a grown block is judged before it has had time to grow (the
# reliability condition of ITOP, Liu et al. 2021), so automatic intervals are not shorter.
SHORTEST_INTERVAL = 25
LEAST_UPDATES = 4


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
    begin: what happens before the first step; the first phase of a run begins with StartMember.
    end: what happens after the last step, in order.
    """

    name: str
    steps: int
    learning_rate: Shape
    topology: TopologyRule | None = None
    begin: tuple[Action, ...] = ()
    end: tuple[Action, ...] = ()
    loss: Loss = CROSS_ENTROPY

    @property
    def tickets(self) -> int:
        """How many tickets are saved at the end."""
        return sum(action.saves for action in self.end)

    @property
    def selects(self) -> bool:
        """Whether a ticket may be taken from any epoch of this phase (--select validation)."""
        return any(action.selects for action in self.end)

    @property
    def ends_with_gradient(self) -> bool:
        """Whether the last step must collect dense gradients, for what happens at the end."""
        return any(action.needs_gradient for action in self.end)

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
