"""How a command begins and ends: its streams, the signals that end it, its exit code."""

import atexit
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from sparse_engine.config.signals import EndingSignals, Interrupted
from sparse_engine.config.streams import lasting_streams
from sparse_engine.errors import InputError, RunFailure, Stopped, UnreadableFile
from sparse_engine.installed import check_core


def run_command(command: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Run a command with sys.argv, and exit.

    The exit code is what the command returns (None: 0); 1 for a failed run, 2 for bad input, 128 +
    a signal; 141 or 1 for a command whose standard output was not taken to its end: it has done
    everything else. Every error is one line.
    """
    with lasting_streams() as streams, EndingSignals() as signals:
        code = _exit_code(command, signals)
    atexit.register(signals.ignore)  # a command that has ended has nothing left to stop
    sys.exit(streams.exit_code(code))


def _exit_code(command: Callable[[Sequence[str]], int | None], signals: EndingSignals) -> int:
    try:
        _check_working_folder()
        check_core()
        return command(sys.argv[1:]) or 0
    except SystemExit as stop:  # of argparse, after --help
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Stopped as stop:
        _say("stopped: ", stop)
        return 128 + stop.signal
    except KeyboardInterrupt as stop:
        number = signals.received or signal.SIGINT
        _say("interrupted ", stop)
        return 128 + number
    except Exception as error:
        if signals.received is not None:
            _say("interrupted ", Interrupted(signals.received))
            return 128 + signals.received
        return _code_of(error)


def _check_working_folder() -> None:
    """Raise InputError where libraries that torch loads would end the process in their own way."""
    try:
        os.getcwd()
    except OSError:
        raise InputError("the working folder is gone; change to one that exists") from None


def _code_of(error: Exception) -> int:
    """Say what an error says, and return its exit code; raise what is none of ours."""
    if isinstance(error, InputError):
        # Of several processes all find the same, but in the files that each reads for itself.
        if os.environ.get("RANK", "0") == "0" or isinstance(error, UnreadableFile):
            _say("error: ", error)
        return 2
    if isinstance(error, RunFailure):
        _say("failed: ", error)
    elif isinstance(error, OSError) and error.filename is not None:
        _say("failed: ", f"'{error.filename}': {error.strerror}")
    else:
        raise error
    return 1


def _say(begin: str, words: object) -> None:
    print((begin + " ".join(str(words).split())).strip(), file=sys.stderr)
