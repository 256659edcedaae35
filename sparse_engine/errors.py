"""Errors and warnings that are the user's to mend: one clear line each, no traceback."""

import difflib
import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

P, T = ParamSpec("P"), TypeVar("T")
_LOG = logging.getLogger(__name__)
# The release that has the earlier names no more.
EARLIER_NAMES_GO_IN = "0.2.0"


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


def warn_renamed(earlier: str, present: str) -> None:
    """Warn the caller's caller that it has used something by its earlier name.

    Not PyTorch, whose tracer reads every attribute that a module has.
    """
    if str(sys._getframe(2).f_globals.get("__name__")).startswith("torch."):
        return
    message = f"{earlier} is {present} now; the earlier name goes in {EARLIER_NAMES_GO_IN}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


def say_renamed(source: str, earlier: str, present: str) -> None:
    """Log that something has another name now, and of flags that the earlier one will go.

    Files of earlier versions are read by later ones too.
    """
    goes = f"; the earlier name goes in {EARLIER_NAMES_GO_IN}" if source == "flags" else ""
    _LOG.warning("%s: %s is called %s now%s", source, earlier, present, goes)


def earlier_name(earlier: str, present: Callable[P, T]) -> Callable[P, T]:
    """Return a function as it is called by its earlier name: it warns, and does the same."""

    @functools.wraps(present)
    def function(*arguments: P.args, **options: P.kwargs) -> T:
        warn_renamed(earlier, present.__qualname__)
        return present(*arguments, **options)

    return function


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
