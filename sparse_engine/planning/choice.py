"""Which training to choose for some seconds: pure functions of rows and measured times. No torch.

Among trainings that fit the one of the best mean accuracy is sought; what lies within one standard
error of it counts as equal, and the cheapest of these is taken (the rule of one standard error,
Breiman et al. 1984, *Classification and Regression Trees*, section 3.4.3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparse_engine.errors import InputError
from sparse_engine.planning.candidates import Candidate
from sparse_engine.planning.rows import Row


@dataclass(frozen=True)
class Priced:
    """A candidate and what it takes here.

    step: seconds of a training step of a whole batch; epoch: of an epoch, with its updates.
    """

    candidate: Candidate
    step: float
    epoch: float

    @property
    def epochs(self) -> int:
        """How long it trains, whole."""
        return self.candidate.config.epochs or 1

    @property
    def seconds(self) -> float:
        """Of the whole training."""
        return self.epochs * self.epoch


@dataclass(frozen=True)
class Expected:
    """A mean difference in accuracy to the dense run, in [-1, 1], and its standard error."""

    difference: float
    error: float


@dataclass(frozen=True)
class Option:
    """A training that fits: how many epochs of it, and what the rows let one expect of that.

    share: of its whole length; expected: None where no row says what so much shortening costs.
    """

    priced: Priced
    epochs: int
    share: float
    expected: Expected | None

    @property
    def seconds(self) -> float:
        """What it takes."""
        return self.epochs * self.priced.epoch


@dataclass(frozen=True)
class Choice:
    """What was chosen, among what.

    best: of the highest expected accuracy; equal: the others within one standard error of that.
    Without expectations best is what was chosen.
    """

    chosen: Option
    best: Option
    equal: tuple[Option, ...]
    options: tuple[Option, ...]

    @property
    def is_shortened(self) -> bool:
        """Whether no training fits whole."""
        return self.chosen.share < 1


def choose(priced: Sequence[Priced], seconds: float) -> Choice:
    """Return which training to make in some seconds; all are shortened only if none fits whole.

    Raises:
        InputError: not one epoch of any fits.
    """
    options = [
        Option(p, p.epochs, 1.0, _expected(p.candidate.row)) for p in priced if p.seconds <= seconds
    ]
    options = options or _shortened(priced, seconds)
    if not options:
        least = min(priced, key=lambda p: p.epoch)
        raise InputError(
            f"no training fits into {seconds:g} seconds: one epoch of the cheapest, "
            f"{least.candidate.name}, takes {least.epoch:.3g}; give more --seconds, or take a "
            "smaller --model"
        )
    known = [(option.expected, option) for option in options if option.expected is not None]
    if not known:
        chosen = max(options, key=lambda option: option.share)
        return Choice(chosen, chosen, (), tuple(options))
    highest, best = max(known, key=lambda pair: pair[0].difference)
    equal = [option for expected, option in known if _is_as_good(expected, highest)]
    # What is shortened takes all the seconds there are: then the least shortened.
    chosen = min(equal, key=lambda o: (-o.share, o.seconds))
    others = tuple(option for option in equal if option is not best)
    return Choice(chosen, best, others, tuple(options))


def lost(rows: Sequence[Row], length: float) -> Expected | None:
    """Return what dense networks have lost by a shorter training, None outside of what was tried.

    On straight lines over the logarithm of the length between the lengths of the study.

    Args:
        rows: of the study.
        length: in dense runs, 1 or less.
    """
    tried = {row.length: _expected(row) for row in rows if row.is_dense}
    tried[1.0] = Expected(0.0, 0.0)
    below = max((one for one in tried if one <= length), default=None)
    above = min((one for one in tried if one >= length), default=None)
    if below is None or above is None:
        return None
    if below == above:
        return tried[below]
    share = math.log(length / below) / math.log(above / below)
    low, high = tried[below], tried[above]
    return Expected(
        low.difference + share * (high.difference - low.difference), max(low.error, high.error)
    )


def _shortened(priced: Sequence[Priced], seconds: float) -> list[Option]:
    rows = [p.candidate.row for p in priced]
    options = []
    for one in _one_of_a_kind(priced):
        if (epochs := int(seconds / one.epoch)) >= 1:
            share = epochs / one.epochs
            options.append(Option(one, epochs, share, _after(one.candidate.row, rows, share)))
    return options


def _one_of_a_kind(priced: Sequence[Priced]) -> list[Priced]:
    """Return each training once, where it is there in several lengths: that nearest to the dense
    run's, of which all others would be shortened to the same."""
    kinds: dict[str, Priced] = {}
    for one in sorted(priced, key=lambda p: abs(math.log(p.candidate.row.length))):
        kinds.setdefault(one.candidate.name, one)
    return list(kinds.values())


def _after(row: Row, rows: Sequence[Row], share: float) -> Expected | None:
    """Return what is expected of a row's training shortened to a share of itself."""
    loss, whole = lost(rows, share), _expected(row)
    if loss is None:
        return None
    return Expected(whole.difference + loss.difference, math.hypot(whole.error, loss.error))


def _expected(row: Row) -> Expected:
    return Expected(row.difference, row.error)


def _is_as_good(one: Expected, best: Expected) -> bool:
    """Return whether one is within the larger standard error of the two of the best."""
    return best.difference - one.difference <= max(one.error, best.error)
