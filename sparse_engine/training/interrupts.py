"""When a run writes checkpoints besides those at the end of every epoch. Imports no torch."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from sparse_engine.config.signals import ENDING, EndingSignals, watched
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


class StopSignals:
    """While it is entered, the first signal that asks a run to stop is remembered.

    A second Ctrl-C acts as ever. SIGTERM and SIGHUP may come again, as torchrun and SLURM send
    them, and change nothing: the checkpoint is being written. Where a command is ending by one, it
    ignores those that follow.

    received: its number, None before. Only the main thread can watch signals; elsewhere nothing
    is ever received.
    """

    received: int | None = None

    def __enter__(self) -> StopSignals:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            own = [number for number in ENDING if watched(number)]
            self._before = {number: signal.signal(number, self._remember) for number in own}
        self._command = _command(self._before.get(signal.SIGTERM))
        if self._command is not None:
            self.received = self._command.received
        return self

    def __exit__(self, *error: object) -> None:
        if self._command is not None and self.received is not None:
            self._command.ends(self.received)
        while self._before:
            signal.signal(*self._before.popitem())

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, self._before.pop(signal.SIGINT))


def _command(handler: Any) -> EndingSignals | None:
    """Return the command whose handler it is, if it is one's."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, EndingSignals) else None
