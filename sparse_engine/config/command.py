"""How a command begins and ends: its streams, the signals that end it, its exit code."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from sparse_engine.config.signals import EndingSignals, Interrupted
from sparse_engine.config.streams import lasting_streams
from sparse_engine.errors import InputError, RunFailure, Stopped, UnreadableFile


def run_command(command: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Run a command with sys.argv, and exit.

    The exit code is what the command returns (None: 0); 1 for a failed run, 2 for bad input, 128 +
    a signal; 141 or 1 for a command whose standard output was not taken to its end: it has done
    everything else. Every error is one line.
    """
    with lasting_streams() as streams, EndingSignals():
        code = _exit_code(command)
    sys.exit(streams.exit_code(code))


def _exit_code(command: Callable[[Sequence[str]], int | None]) -> int:
    try:
        return command(sys.argv[1:]) or 0
    except SystemExit as stop:  # of argparse, after --help
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except InputError as error:
        # Of several processes all find the same, but in the files that each reads for itself.
        if os.environ.get("RANK", "0") == "0" or isinstance(error, UnreadableFile):
            _say("error: ", error)
        return 2
    except RunFailure as error:
        _say("failed: ", error)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        _say("failed: ", f"'{error.filename}': {error.strerror}")
        return 1
    except Stopped as stop:
        _say("stopped: ", stop)
        return 128 + stop.signal
    except Interrupted as stop:
        _say("interrupted ", stop)
        return 128 + stop.signal
    except KeyboardInterrupt:
        _say("interrupted", "")
        return 128 + signal.SIGINT


def _say(begin: str, words: object) -> None:
    print(begin + " ".join(str(words).split()), file=sys.stderr)
