"""Which training to choose for some seconds: pure functions of rows and measured times. No torch.

Among trainings that fit the one of the best mean accuracy is sought; what lies within one standard
error of it counts as equal, and the cheapest of these is taken (the rule of one standard error,
Breiman et al. 1984, *Classification and Regression Trees*, section 3.4.3). The standard error is of
all of them together, since that of three seeds is itself uncertain.

Trainings are whole, as in the study; those of which it has several lengths may have any between
these. Only where nothing fits are all others shortened, and taken to lose by that what others of
their method lose, or else dense networks.
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

    tried: False of a length beyond those that the study has; like: what it is taken to lose as much
    as by being shortened, nothing where the study has several lengths of the training itself.
    """

    difference: float
    error: float
    tried: bool = True
    like: str = ""


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
        Option(p, p.epochs, 1.0, Expected(p.candidate.row.difference, p.candidate.row.error))
        for p in priced
        if p.seconds <= seconds
    ]
    options = [*whole, *_between_lengths(priced, seconds)] or _shortened(priced, seconds)
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


def at_length(rows: Sequence[Row], length: float) -> Expected | None:
    """Return what one training reaches at another length; None without two lengths of it.

    On straight lines over the logarithm of the length, of which the outer ones go on.

    Args:
        rows: of that training.
        length: in dense runs.
    """
    tried = sorted({row.length: row for row in rows}.items())
    lines = [*pairwise(tried)]
    if not lines:
        return None
    (below, low), (above, high) = next((line for line in lines if length <= line[1][0]), lines[-1])
    share = math.log(length / below) / math.log(above / below)
    difference = low.difference + share * (high.difference - low.difference)
    is_between = tried[0][0] <= length <= tried[-1][0]
    return Expected(difference, max(low.error, high.error), is_between)


def _between_lengths(priced: Sequence[Priced], seconds: float) -> list[Option]:
    """Return the longest training between two lengths of the study, of each that has some."""
    options = []
    for kind in _kinds(priced):
        too_long = [one for one in kind if one.seconds > seconds]
        if not too_long:
            continue
        shortest = min(too_long, key=lambda p: p.seconds)
        if not (epochs := int(seconds / shortest.epoch)):
            continue
        share = epochs / shortest.epochs
        rows = [one.candidate.row for one in kind]
        expected = at_length(rows, share * shortest.candidate.row.length)
        if expected and expected.tried:
            options.append(Option(shortest, epochs, share, expected))
    return options


def _shortened(priced: Sequence[Priced], seconds: float) -> list[Option]:
    kinds = _kinds(priced)
    rows_of = [[one.candidate.row for one in kind] for kind in kinds]
    options = []
    for kind, rows in zip(kinds, rows_of):
        # Of several lengths, which would be shortened to one, that nearest to the dense run's.
        one = min(kind, key=lambda p: abs(math.log(p.candidate.row.length)))
        if (epochs := int(seconds / one.epoch)) >= 1:
            share = epochs / one.epochs
            own = at_length(rows, share * one.candidate.row.length)
            expected = own or _as_others(one.candidate.row, rows_of, share)
            options.append(Option(one, epochs, share, expected))
    return options


def _kinds(priced: Sequence[Priced]) -> list[list[Priced]]:
    """Return each training's lengths together."""
    kinds: dict[str, list[Priced]] = {}
    for one in priced:
        kinds.setdefault(one.candidate.name, []).append(one)
    return [*kinds.values()]


def _as_others(row: Row, kinds: Iterable[Sequence[Row]], share: float) -> Expected | None:
    """Return what a training reaches in a share of its length if it loses what others do.

    They have several lengths in the study: they are of its method and as long, or else dense.

    Args:
        row: of the training.
        kinds: rows of each training.
        share: of its length.
    """
    method = row.settings["method"]
    of_method = [rows for rows in kinds if rows[0].settings["method"] == method]
    of_dense = [rows for rows in kinds if rows[0].is_dense]
    for others, whole, like in (
        *((rows, row.length, f"{method} trainings") for rows in of_method),
        *((rows, 1.0, "dense networks") for rows in of_dense),
    ):
        before, after = at_length(others, whole), at_length(others, share * whole)
        if before and after and before.tried:
            difference = row.difference + after.difference - before.difference
            return Expected(difference, math.hypot(row.error, after.error), after.tried, like)
    return None


def _error_of(expected: Iterable[Expected]) -> float:
    """Return one standard error of several figures: the root of its mean square.

    Not of the dense run's difference to itself.
    """
    squares = [one.error**2 for one in expected if one.error]
    return math.sqrt(statistics.mean(squares)) if squares else 0.0
