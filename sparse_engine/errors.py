"""Errors that are the user's to mend: one clear line each, no traceback."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A flag, file or argument that cannot be used; the message says what to do about it."""


class UnreadableFile(InputError):
    """A file of the data that cannot be used; of several processes only its reader knows."""


class RunFailure(RuntimeError):
    """A run that started well and cannot go on, such as a loss that is not finite."""


class ReplacedLayerWarning(UserWarning):
    """Something that a user hung on a layer is not on the layer that took its place."""


class Stopped(Exception):
    """A signal has asked a run to stop; what it had done is in its checkpoint.

    signal: its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def nearest(name: str, choices: Iterable[str], most: int = 1) -> str:
    """Return `; did you mean 'x'?` for the choice nearest to `name`, or an empty string.

    With `most` above 1 it names as many: `; did you mean 'x', 'y' or 'z'?`.
    """
    matches = difflib.get_close_matches(name, list(choices), n=most, cutoff=0.5)
    *others, last = [f"'{match}'" for match in matches] or [""]
    return f"; did you mean {', '.join(others)}{' or ' * bool(others)}{last}?" if last else ""


def first_line(error: Exception) -> str:
    """Return the first line of another library's message, or the error's type if it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
