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
seconds: of all steps of the whole training on an idle machine; starting, reading and evaluating
  come on top
accuracy: mean difference to the dense run in the study, and its standard error over n seeds"""
# Trainings that are listed by name where others are as good.
MOST_NAMES = 3
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


def in_sentences(
    choice: Choice, rows: Sequence[Row], seconds: float, differences: Sequence[str], command: str
) -> str:
    """Return the choice, why, what to expect, where that extrapolates, and how to train it."""
    chosen = f"{_named(choice.chosen)}, {choice.chosen.seconds:.4g} seconds of {seconds:g}"
    return "\n".join(
        (
            f"choice: {chosen}",
            f"why: {reason(choice)}",
            f"expects: {expectation(choice, rows)}",
            *(f"extrapolates: {difference}" for difference in differences),
            f"train it: {command}",
        )
    )


def reason(choice: Choice) -> str:
    """Return why this training was chosen, in one sentence."""
    chosen, best, expected = choice.chosen, choice.best, choice.best.expected
    if expected is None:
        return (
            "no training fits whole, and no row says what shortening costs: this is the one that "
            "is shortened least"
        )
    what = f"of the {len(choice.options)} that fit"
    if choice.all_shortened:
        what = f"no training fits whole; {what} when they are shortened"
    name = "it" if chosen is best else _named(best)
    first = f"{what}, {name} has the highest expected accuracy ({points(expected)} points)"
    if not expected.tried:
        first = f"{what}, to lengths that were not tried, {name} seems to lose least"
    near = f"within one standard error ({100 * choice.error:.2f} points) of that"
    others = _listed([option for option in choice.equal if option is not chosen])
    if not choice.equal:
        return f"{first}; none of the others is {near}"
    cheap = "takes the fewest seconds" if chosen.share == 1 else "is shortened least"
    if chosen is best:
        return f"{first}; of what is {near}{others} it {cheap}"
    return f"{first}; the choice is {near}{others}, and {cheap}"


def _listed(options: Sequence[Option]) -> str:
    """Return options in brackets, the first few by name."""
    names = [_named(option) for option in options[:MOST_NAMES]]
    if more := len(options) - len(names):
        names.append(f"{more} more")
    return f" ({', '.join(names)} too)" if names else ""


def _named(option: Option) -> str:
    return f"{option.priced.candidate.name} ({option.epochs} epochs)"


def expectation(choice: Choice, rows: Sequence[Row]) -> str:
    """Return what may be expected of the training that was chosen."""
    chosen = choice.chosen
    row = chosen.priced.candidate.row
    dense = next((r for r in rows if r.is_dense and r.length == 1), None)
    if chosen.expected is None or not chosen.expected.tried:
        return "not known; the table says what it reached at its whole length"
    words = (
        f"accuracy {points(chosen.expected)} points to a dense network of "
        f"{chosen.priced.candidate.config.dense_epochs} epochs"
    )
    if chosen.share < 1:
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
        yield (
            f"steps were timed with up to {timed_images} images, and those of {dense.batch_size} "
            "taken to lie on a straight line through them, which may be off by a factor of two"
        )
    if (share := choice.chosen.share) < 1:
        costs = "shorter than anything that was tried"
        if (expected := choice.chosen.expected) is not None and expected.tried:
            costs = f"which is taken to cost what shorter {expected.like} lost"
            costs = costs if expected.like else "between lengths that the study has"
        yield f"trained for {share:.0%} of its length, {costs}"


def as_json(choice: Choice, priced: Sequence[Priced], seconds: float) -> dict[str, Any]:
    """Return what the last line has of candidates and choice; accuracies are shares."""
    chosen, expected = choice.chosen, choice.chosen.expected
    known = expected if expected and expected.tried else None
    return {
        "candidates": [
            {
                "name": one.candidate.name,
                "settings": one.candidate.row.settings,
                "model": one.candidate.config.model,
                "epochs": one.epochs,
                "seconds_per_step": one.step,
                "train_seconds": one.seconds,
                "fits": one.seconds <= seconds,
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
            "difference": known and known.difference,
            "error": known and known.error,
        },
    }
