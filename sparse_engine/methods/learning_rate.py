"""Shapes of the learning rate over a phase, as multiples of --lr. Imports no torch.

A shape has one function, `at(step, steps)`: the multiple at a step (from 0) of a phase of `steps`.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol


class Shape(Protocol):
    """What a phase needs of a learning rate."""

    def at(self, step: int, steps: int) -> float:
        """Return the multiple at a step (counted from 0) of a phase."""
        ...


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
class Linear:
    """Straight lines between points (share of the phase, multiple), from share 0 to share 1.

    Three points are one triangle, the cycle of Sup-tickets and of FGE (Garipov et al. 2018, eq. 2).
    """

    points: tuple[tuple[float, float], ...]

    def at(self, step: int, steps: int) -> float:
        """Return the multiple; the last step of the phase has that of the last point."""
        share = step / max(1, steps - 1)
        for (left, low), (right, high) in pairwise(self.points):
            if share <= right:
                return low + (high - low) * (share - left) / (right - left)
        return self.points[-1][1]


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `high` down to `low` (Loshchilov & Hutter 2017, eq. 5; Snapshot)."""

    high: float = 1.0
    low: float = 0.0

    def at(self, step: int, steps: int) -> float:
        """Return the multiple; the step after the last would have `low`."""
        return self.low + (self.high - self.low) / 2 * (1 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class Segment:
    """A stretch of another shape: its schedule as if the phase began `skip` steps into `whole`.

    A run that is split into phases keeps one schedule this way, and a rewound one repeats its end.
    """

    shape: Shape
    skip: int
    whole: int

    def at(self, step: int, steps: int) -> float:
        """Return the multiple of the whole schedule."""
        return self.shape.at(self.skip + step, self.whole)
