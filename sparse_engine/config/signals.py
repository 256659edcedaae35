"""Signals that ask a command to end: Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes."""

import math
import signal
import threading
import time
from types import FrameType
from typing import Any

# What SLURM, systemd, container runtimes and closed terminals send; some systems have no SIGHUP.
POLITE = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
ENDING = (signal.SIGINT, *POLITE)
# Who sends a signal may send it twice, to a process and to its group: torchrun, SLURM.
SAME = 1.0  # seconds


class Interrupted(KeyboardInterrupt):
    """A signal has asked a command to end; it unwinds as Ctrl-C does.

    signal: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"by {signal.Signals(number).name}")
        self.signal = number


def watched(number: int) -> bool:
    """Return whether a signal may be watched: nohup says that SIGHUP is to be ignored."""
    hang_up = getattr(signal, "SIGHUP", None)
    return number != hang_up or signal.getsignal(number) is not signal.SIG_IGN


class EndingSignals:
    """While it is entered, SIGTERM and SIGHUP raise Interrupted, as Ctrl-C raises its own.

    received: the number of the one that came, None before. Only the main thread can watch.
    """

    received: int | None = None
    _quiet_until = 0.0

    def __enter__(self) -> "EndingSignals":
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            own = [number for number in POLITE if watched(number)]
            self._before = {number: signal.signal(number, self._raise) for number in own}
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._before and self.received is not None:
            # The process is ending: nothing may disturb what it does last.
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)

    def ends(self, number: int) -> None:
        """Take note that a signal, which came to somebody else, ends the command."""
        self.received, self._quiet_until = number, math.inf

    def _raise(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            self.received, self._quiet_until = number, now + SAME
            raise Interrupted(number)
