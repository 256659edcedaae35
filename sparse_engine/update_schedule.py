"""When topology is updated, and by how much. Imports no torch."""

import math
from dataclasses import dataclass

from sparse_engine.errors import InputError

DROP_SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class UpdateSchedule:
    """An update every `interval` steps, before step `stop`.

    drop: share of active blocks replaced, at the start; "cosine" anneals it to 0 at `stop`
    (Evci et al. 2020, section 3.2), "constant" keeps it (Liu et al. 2022).
    stop: first step without updates, None for never.
    """

    interval: int
    drop: float
    stop: int | None
    kind: str = "cosine"

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise InputError(f"the update interval must be at least 1 step, found {self.interval}")
        if not 0 < self.drop <= 1:
            raise InputError(f"the drop rate must be above 0 and at most 1, found {self.drop}")
        if self.kind not in DROP_SCHEDULES:
            raise InputError(f"unknown drop schedule '{self.kind}'; use constant or cosine")

    def rate(self, step: int) -> float:
        """Return the share to replace after step `step` (counted from 1), 0 between updates."""
        if step % self.interval or (self.stop is not None and step >= self.stop):
            return 0.0
        if self.kind == "constant" or self.stop is None:
            return self.drop
        return self.drop / 2 * (1 + math.cos(math.pi * step / self.stop))

    def updates_in(self, steps: int) -> int:
        """Return how many updates fall into the first `steps` steps."""
        last = steps if self.stop is None else min(steps, self.stop - 1)
        return max(0, last) // self.interval
