"""When topology is updated, and by how much. Imports no torch."""

import logging
import math
from dataclasses import dataclass
from typing import Literal, get_args

from sparse_engine.errors import InputError, nearest

UpdateRule = Literal["static", "set", "rigl", "snfs", "granet"]
UPDATE_RULES: tuple[UpdateRule, ...] = get_args(UpdateRule)
DropSchedule = Literal["constant", "cosine"]
DROP_SCHEDULES: tuple[DropSchedule, ...] = get_args(DropSchedule)
# Sup-tickets' GraNet prunes until epoch 110 of 250 (Yin et al. 2022), which is this share of the
# updates where these stop at three quarters of a run.
PRUNING_SHARE = 0.6


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
    kind: DropSchedule = "cosine"

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise InputError(f"the update interval must be at least 1 step, found {self.interval}")
        if not 0 < self.drop <= 1:
            raise InputError(f"the drop rate must be above 0 and at most 1, found {self.drop}")
        if self.kind not in DROP_SCHEDULES:
            hint = nearest(self.kind, DROP_SCHEDULES)
            raise InputError(f"unknown drop schedule '{self.kind}'{hint}; use constant or cosine")

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

    def check_length(self, total_steps: int) -> None:
        """Raise InputError unless a run of so many steps has an update."""
        if not self.updates_in(total_steps):
            raise InputError(
                f"a run of {total_steps} steps is too short for a topology update every "
                f"{self.interval} steps; make it longer, the interval shorter, or stop later"
            )

    def pruned_share(self, step: int) -> float:
        """Return how much of gradual pruning is done after step `step`, from 0 to 1.

        1 - (1 - k / K)^3 after the k-th update, where K is PRUNING_SHARE of all updates
        (Zhu & Gupta 2017, as GraNet uses it); 1 without a `stop`.
        """
        if self.stop is None:
            return 1.0
        last = max(1, round(PRUNING_SHARE * self.updates_in(self.stop)))
        return 1 - (1 - min(1.0, self.updates_in(step) / last)) ** 3

    def mean_pruned_share(self, steps: int) -> float:
        """Return the mean over the first `steps` steps of the pruned share they run with.

        A layer of `start` blocks that ends with `final` has start + (final - start) * this of
        them on average, so FLOPs, which are linear in density, follow from it.
        """
        stretches = range(0, steps, self.interval)
        whole = sum(self.pruned_share(n) * min(self.interval, steps - n) for n in stretches)
        return whole / steps


def last_step(stop: float | None, total_steps: int | None) -> int | None:
    """Return the first step without updates, None for never.

    Args:
        stop: a share of total_steps, above 1 a step; None for never.
        total_steps: length of the run; None if it is not known, and a share has no effect.

    Raises:
        InputError: stop is not above 0, or infinite.
    """
    if stop is not None and not 0 < stop < math.inf:
        raise InputError(f"stop must be above 0 and finite, or None, found {stop}")
    if stop is not None and stop <= 1:
        if total_steps is None:
            logging.getLogger(__name__).info(
                "without total_steps, topology updates never stop and keep their rate"
            )
        stop = None if total_steps is None else stop * total_steps
    return None if stop is None else math.ceil(stop)
