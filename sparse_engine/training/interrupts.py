"""When a run writes checkpoints besides those at the end of every epoch. Imports no torch."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from sparse_engine.config.values import check_period


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


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While it is entered, the first signal is remembered; the second acts as ever.

    received: its number, None before. Only the main thread can watch signals; elsewhere nothing
    is ever received.
    """

    received: int | None = None

    def __enter__(self) -> StopSignals:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._remember) for n in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
