"""A dense run with a point to go back to, and what its first pruning begins with."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_engine.config.config import Config
from sparse_engine.methods.actions import Action, Fresh, Keep
from sparse_engine.methods.freetickets import schedule_for
from sparse_engine.methods.learning_rate import LearningRate, Part
from sparse_engine.methods.phase import Phase
from sparse_engine.methods.pruning_actions import PermuteChannels

POINT = "rewind point"


@dataclass(frozen=True)
class DenseRun:
    """A run of `whole` steps, `start` of which come before the point that is gone back to."""

    start: int
    whole: int
    rate: LearningRate

    def part(self, done: int) -> Part:
        """Return the run's learning rate from a step on."""
        return Part(self.rate, done, self.whole)

    @property
    def rest(self) -> Part:
        """The learning rate from the point to the end of the run."""
        return self.part(self.start)

    def opening(self) -> tuple[list[Phase], tuple[Action, ...]]:
        """Return the phases up to the point, and what the phase after it begins with."""
        if not self.start:
            return [], (Fresh(0.0), Keep(POINT))
        rate = self.part(0)
        return [Phase("start", self.start, rate, begin=(Fresh(0.0),), end=(Keep(POINT),))], ()


def dense_run(config: Config, start: int, whole: int, warmup_steps: float) -> DenseRun:
    """Return a run with the learning rate of one network of the data set's recipe."""
    milestones = schedule_for(config.dataset).member
    return DenseRun(start, whole, LearningRate(milestones, warmup_steps / whole))


def permutation_of(config: Config) -> tuple[Action, ...]:
    """Return what comes before the first pruning of a dense network.

    Channels are ordered for the blocks of the end: a network that has blocks keeps its order.
    """
    return (PermuteChannels(config.sparsity or 0.0),) if config.permute_channels else ()
