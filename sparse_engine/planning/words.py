"""What a plan says: its table, its choice in sentences, and where it extrapolates. No torch."""

from collections.abc import Iterator, Sequence
from typing import Any

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.planning.choice import Choice, Expected, Option, Priced
from sparse_engine.planning.rows import Row
from sparse_engine.tables import format_table

HEAD = (
    *("training", "epochs", "step ms", "/ dense", "seconds", "fits"),
    *("accuracy, points", "n", "NLL", "ECE"),
)
NOTE = """\
step ms: a training step of a whole batch, and its ratio to the dense network's
seconds: of the whole training, all its steps; starting, reading and evaluating come on top
accuracy: mean difference to the dense run in the study, and its standard error over n seeds"""
# Seeds below which a mean says little.
FEW_SEEDS = 3


def table(priced: Sequence[Priced], dense_step: float, seconds: float) -> str:
    """Return a line for each training, the cheapest first."""
    rows = [HEAD]
    for one in sorted(priced, key=lambda p: p.seconds):
        row = one.candidate.row
        rows.append(
            (
                *(one.candidate.name, f"{one.epochs}", f"{1e3 * one.step:.3g}"),
                *(f"{one.step / dense_step:.2f}", f"{one.seconds:.4g}", _fit(one, seconds)),
                points(Expected(row.difference, row.error)),
                *(f"{row.n}", f"{row.nll:.3f}", f"{row.ece:.3f}"),
            )
        )
    return format_table(rows, left=1)


def _fit(one: Priced, seconds: float) -> str:
    if one.seconds <= seconds:
        return "whole"
    return f"{seconds / one.seconds:.0%}" if one.epoch <= seconds else "no epoch"


def points(expected: Expected) -> str:
    """Return a difference in accuracy in points, with its standard error."""
    return f"{100 * expected.difference:+.2f} ± {100 * expected.error:.2f}"


def in_words(option: Option) -> str:
    """Return what a training is, how long it is and what it takes."""
    return f"{_named(option)}, {option.seconds:.4g} seconds"


def reason(choice: Choice) -> str:
    """Return why this training was chosen, in one sentence."""
    chosen, best, count = choice.chosen, choice.best, len(choice.options)
    if chosen.expected is None or best.expected is None:
        return (
            "no training fits whole, and no row says what so much shortening costs: this is the "
            "one that is shortened least"
        )
    what = (
        f"no training fits whole; of the {count} that fit when they are shortened"
        if choice.is_shortened
        else f"of the {count} that fit"
    )
    name = "it" if chosen is best else _named(best)
    first = f"{what}, {name} has the highest expected accuracy ({points(best.expected)} points)"
    cheap = "is shortened least" if choice.is_shortened else "takes the fewest seconds"
    if not choice.equal:
        return f"{first}; none of the others is within one standard error of that"
    if chosen is best:
        others = ", ".join(_named(option) for option in choice.equal)
        return f"{first}; {others} are within one standard error of that, and it {cheap}"
    rest = [_named(option) for option in choice.equal if option is not chosen]
    also = f", as are {', '.join(rest)}" if rest else ""
    return f"{first}; it is within one standard error of that{also}, and {cheap}"


def _named(option: Option) -> str:
    return f"{option.priced.candidate.name} ({option.epochs} epochs)"


def expectation(choice: Choice, rows: Sequence[Row]) -> str:
    """Return what may be expected of the training that was chosen."""
    chosen = choice.chosen
    row = chosen.priced.candidate.row
    dense = next((r for r in rows if r.is_dense and r.length == 1), None)
    if chosen.expected is None:
        return "not known; the table says what it reached at its whole length"
    words = (
        f"accuracy {points(chosen.expected)} points to a dense network of "
        f"{chosen.priced.candidate.config.dense_epochs} epochs"
    )
    if choice.is_shortened:
        return f"{words}; NLL and ECE are not known of a shortened training"
    beside = f" (dense {dense.nll:.3f} and {dense.ece:.3f})" if dense else ""
    return f"{words}; in the study NLL {row.nll:.3f} and ECE {row.ece:.3f}{beside}"


def extrapolations(
    choice: Choice, dense: Config, info: DatasetInfo, on_gpu: bool, timed_images: int
) -> Iterator[str]:
    """Yield each way in which this case is another than the study's.

    Args:
        choice: what was chosen.
        dense: the user's dense run, resolved.
        info: of the user's data.
        on_gpu: whether the user trains on a GPU.
        timed_images: in the steps that were timed.
    """
    row = choice.chosen.priced.candidate.row
    where = f"trained on {'a CPU' if row.device.startswith('CPU') else 'a GPU'} in {row.dtype}"
    here = f"trained on {'a GPU' if on_gpu else 'a CPU'} in {dense.dtype}"
    sides = f"{row.pixels}x{row.pixels}", f"{info.height}x{info.width}"
    for what, theirs, ours in (
        ("data set {}", row.dataset, info.name),
        ("images of {} pixels", *sides),
        ("{} training images", row.images, info.train_size),
        ("model {}", row.model, dense.model),
        ("a dense run of {} epochs", row.dense_epochs, dense.dense_epochs),
        ("batches of {} images", row.batch_size, dense.batch_size),
        ("{}", where, here),
    ):
        if theirs != ours:
            yield f"{what.format(theirs)} in the study, {ours} here"
    if row.n < FEW_SEEDS:
        yield f"what it reached in the study is of {row.n} seeds"
    if timed_images != dense.batch_size:
        yield f"steps were timed with {timed_images} images, and taken to grow with the batch"
    if choice.is_shortened:
        costs = (
            "that costs what shorter dense networks lost"
            if choice.chosen.expected
            else ("shorter than anything was tried")
        )
        yield f"trained for {choice.chosen.share:.0%} of its length, {costs}"


def as_json(choice: Choice, priced: Sequence[Priced]) -> dict[str, Any]:
    """Return what the last line has of candidates and choice; accuracies are shares."""
    chosen, expected = choice.chosen, choice.chosen.expected
    return {
        "candidates": [
            {
                "name": one.candidate.name,
                "settings": one.candidate.row.settings,
                "model": one.candidate.config.model,
                "epochs": one.epochs,
                "seconds_per_step": one.step,
                "seconds": one.seconds,
                **{n: getattr(one.candidate.row, n) for n in ("difference", "error", "n")},
                **{n: getattr(one.candidate.row, n) for n in ("nll", "ece")},
            }
            for one in priced
        ],
        "choice": {
            "name": chosen.priced.candidate.name,
            "epochs": chosen.epochs,
            "share": chosen.share,
            "train_seconds": chosen.seconds,
            "difference": expected and expected.difference,
            "error": expected and expected.error,
        },
    }
