"""When a run writes checkpoints besides those at the end of every epoch. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable

from sparse_engine.errors import InputError


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


def check_period(period: str | None) -> tuple[int | None, float | None]:
    """Return the steps or the seconds of "500" or "600s".

    Raises:
        InputError: it is neither.
    """
    if period is None:
        return None, None
    number = period.removesuffix("s")
    try:
        value = float(number) if period.endswith("s") else int(number)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise InputError(
            f"--checkpoint-every takes steps such as 500, or seconds such as 600s, found '{period}'"
        )
    return (None, float(value)) if period.endswith("s") else (int(value), None)
