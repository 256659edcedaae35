"""Which training to choose for some seconds: pure functions of rows and measured times. No torch.

Among trainings that fit the one of the best mean accuracy is sought; what lies within one standard
error of it counts as equal, and the cheapest of these is taken (the rule of one standard error,
Breiman et al. 1984, *Classification and Regression Trees*, section 3.4.3). The standard error is of
all of them together, since that of three seeds is itself uncertain.

Trainings are whole, as in the study. Dense networks, of which studies make several lengths, may
have any length between these. Only where nothing fits are all others shortened, and taken to lose
by that what dense networks lose.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    """A mean difference in accuracy to the dense run, in [-1, 1], and its standard error.

    tried: False of a length beyond those that the study has.
    """

    difference: float
    error: float
    tried: bool = True


@dataclass(frozen=True)
class Option:
    """A training that fits: how many epochs of it, and what the rows let one expect of that.

    share: of its whole length; expected: None where no row says what shortening costs.
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

    best: of the highest expected accuracy; equal: the others within one standard error of that,
    `error`. Without expectations best is what was chosen.
    """

    chosen: Option
    best: Option
    equal: tuple[Option, ...]
    options: tuple[Option, ...]
    error: float = 0.0

    @property
    def all_shortened(self) -> bool:
        """Whether no training fits whole."""
        return all(option.share < 1 for option in self.options)


def choose(priced: Sequence[Priced], seconds: float) -> Choice:
    """Return which training to make in some seconds.

    Raises:
        InputError: not one epoch of any fits.
    """
    whole = [
        Option(p, p.epochs, 1.0, _expected(p.candidate.row)) for p in priced if p.seconds <= seconds
    ]
    options = [*whole, *_dense_between(priced, seconds)] or _shortened(priced, seconds)
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
    known = [pair for pair in known if pair[0].tried] or known
    error = _error_of(expected for expected, _ in known)
    highest, best = max(known, key=lambda pair: pair[0].difference)
    equal = [o for expected, o in known if highest.difference - expected.difference <= error]
    # What is shortened takes all the seconds there are: then the least shortened.
    chosen = min(equal, key=lambda o: (-o.share, o.seconds))
    others = tuple(option for option in equal if option is not best)
    return Choice(chosen, best, others, tuple(options), error)


def lost(rows: Sequence[Row], length: float) -> Expected | None:
    """Return what dense networks lose by a shorter training, None without two lengths of it.

    On straight lines over the logarithm of the length, of which the outer ones go on.

    Args:
        rows: of the study.
        length: in dense runs.
    """
    tried = sorted({row.length: row for row in rows if row.is_dense}.items())
    lines = [*pairwise(tried)]
    if not lines:
        return None
    (below, low), (above, high) = next((line for line in lines if length <= line[1][0]), lines[-1])
    share = math.log(length / below) / math.log(above / below)
    difference = low.difference + share * (high.difference - low.difference)
    is_between = tried[0][0] <= length <= tried[-1][0]
    return Expected(difference, max(low.error, high.error), is_between)


def _dense_between(priced: Sequence[Priced], seconds: float) -> list[Option]:
    """Return the longest dense training between two lengths of the study, if there is one."""
    too_long = [p for p in priced if p.candidate.row.is_dense and p.seconds > seconds]
    if not too_long:
        return []
    shortest = min(too_long, key=lambda p: p.seconds)
    epochs = int(seconds / shortest.epoch)
    share = epochs / shortest.epochs
    rows = [p.candidate.row for p in priced]
    expected = lost(rows, share * shortest.candidate.row.length) if epochs else None
    return [Option(shortest, epochs, share, expected)] if expected and expected.tried else []


def _shortened(priced: Sequence[Priced], seconds: float) -> list[Option]:
    rows = [p.candidate.row for p in priced]
    options = []
    for one in _one_of_a_kind(priced):
        if (epochs := int(seconds / one.epoch)) >= 1:
            share = epochs / one.epochs
            options.append(Option(one, epochs, share, _after(one.candidate.row, rows, share)))
    return options


def _one_of_a_kind(priced: Sequence[Priced]) -> list[Priced]:
    """Return each training once: of several lengths, which would be shortened to one, that nearest
    to the dense run's."""
    kinds: dict[str, Priced] = {}
    for one in sorted(priced, key=lambda p: abs(math.log(p.candidate.row.length))):
        kinds.setdefault(one.candidate.name, one)
    return list(kinds.values())


def _after(row: Row, rows: Sequence[Row], share: float) -> Expected | None:
    """Return what is expected of a row's training shortened to a share of itself."""
    loss, whole = lost(rows, share), _expected(row)
    if loss is None:
        return None
    error = math.hypot(whole.error, loss.error)
    return Expected(whole.difference + loss.difference, error, loss.tried)


def _expected(row: Row) -> Expected:
    return Expected(row.difference, row.error)


def _error_of(expected: Iterable[Expected]) -> float:
    """Return one standard error of several figures: the root of its mean square.

    Not of the dense run's difference to itself.
    """
    squares = [one.error**2 for one in expected if one.error]
    return math.sqrt(statistics.mean(squares)) if squares else 0.0
