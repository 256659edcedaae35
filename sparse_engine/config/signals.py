"""Signals that ask a command to end: Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes."""

import math
import os
import signal
import sys
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
    """While it is entered, Ctrl-C, SIGTERM and SIGHUP raise Interrupted.

    received: the number of the one that came, None before: what is raised where another library
    imports its parts may be turned into another error. Only the main thread can watch.
    """

    received: int | None = None
    _quiet_until = 0.0

    def __enter__(self) -> "EndingSignals":
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook
        if threading.current_thread() is threading.main_thread():
            own = [number for number in POLITE if watched(number)]
            # Python itself leaves SIGINT alone where a shell says that it is to be ignored.
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                own.append(signal.SIGINT)
            self._before = {number: signal.signal(number, self._raise) for number in own}
            sys.unraisablehook = self._raise_again
        return self

    def __exit__(self, *error: object) -> None:
        sys.unraisablehook = self._hook
        for number, before in self._before.items():
            signal.signal(number, before)
        if self.received is not None:
            self.ignore()

    def ignore(self) -> None:
        """Let nothing disturb what an ending process does last."""
        for number in ENDING if self._before else ():
            signal.signal(number, signal.SIG_IGN)

    def ends(self, number: int) -> None:
        """Take note that a signal, which came to somebody else, ends the command."""
        self.received, self._quiet_until = number, math.inf

    def _raise(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            self.received, self._quiet_until = number, now + SAME
            raise Interrupted(number)

    def _raise_again(self, unraisable: Any) -> None:
        """Raise where it counts what came while Python was freeing an object."""
        if not isinstance(unraisable.exc_value, Interrupted):
            return self._hook(unraisable)
        number, self._quiet_until = unraisable.exc_value.signal, 0.0
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
