"""When a run writes checkpoints besides those at the end of every epoch. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable

from sparse_engine.config_file import check_period


class CheckpointSchedule:
    """A checkpoint every so many steps ("500") or seconds ("600s")."""

    def __init__(self, period: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin now; None never asks for one. See check_period for errors."""
        self._steps, self._seconds = check_period(period)
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Count from now: a checkpoint has been written."""
        self._count, self._since = 0, self._clock()

    def is_due(self) -> bool:
        """Count one step; return whether it is time."""
        self._count += 1
        if self._steps:
            return self._count >= self._steps
        return self._seconds is not None and self._clock() - self._since >= self._seconds
