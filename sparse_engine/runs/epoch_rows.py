"""The rows of metrics.csv, one an epoch, and of blocks.csv, one an epoch and sparse layer."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sparse_engine.errors import InputError

_FORMATS = {
    "learning_rate": ".6g",
    "train_loss": ".6f",
    "nll": ".6f",
    "accuracy": ".6f",
    "exploration_rate": ".6f",
    "train_seconds": ".3f",
    "density": ".6g",
    "kept": ".6g",
    "explored": ".6g",
    "weaker_half": ".4g",
    "empty_outputs": ".4g",
}


class EpochRow(NamedTuple):
    """One epoch; loss, NLL and accuracy are means over the members that train as one, if they do.

    epoch, step: those of the whole run so far.
    split: the split that NLL and accuracy are of, None in epochs without an evaluation.
    exploration_rate: the share of the sparse layers' weights that were ever active.
    train_seconds: the seconds of training steps so far.
    """

    epoch: int
    step: int
    phase: str
    learning_rate: float
    train_loss: float
    split: str
    nll: float | None
    accuracy: float | None
    exploration_rate: float
    train_seconds: float

    def texts(self) -> dict[str, str]:
        """Return the row as the file holds it."""
        return _texts(self._asdict())


class BlockRow(NamedTuple):
    """A sparse layer at the end of an epoch.

    step: of the whole run so far.
    layer: its name; where members train as one, the member's number from 0 and a dot before it.
    density: weights in active blocks / weights.
    kept: the share of the blocks that it began with that are active.
    explored: the share of all its blocks that were ever active.
    weaker_half: what the weaker half of its active blocks has of the sum of all their strengths,
        by which updates drop them; None with fewer than two blocks, or values that are all zero.
    empty_outputs: the share of its output channels that have no active block, and are constants.
    """

    step: int
    layer: str
    density: float
    kept: float
    explored: float
    weaker_half: float | None = None
    empty_outputs: float | None = None

    def texts(self) -> dict[str, str]:
        """Return the row as the file holds it."""
        return _texts(self._asdict())


COLUMNS = EpochRow._fields
BLOCK_COLUMNS = BlockRow._fields
# How many columns the earliest version of a file had; later ones are added behind them.
_EARLIEST = {BLOCK_COLUMNS: 5}


def whole_rows(path: Path, columns: Sequence[str] = COLUMNS) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv, or a blocks.csv, but those cut short, as the last may be.

    A column that an earlier version did not have yet is empty.

    Raises:
        InputError: the file is something else.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, ValueError, csv.Error):
        header, rows = None, []
    if not rows and header is not None:
        return []
    least = _EARLIEST.get(tuple(columns), len(columns))
    if header is None or len(header) < least or header != [*columns[: len(header)]]:
        raise InputError(f"'{path}' is damaged; move it away, and later epochs are written anew")
    empty = [""] * (len(columns) - len(header))
    whole = (dict(zip(columns, row + empty)) for row in rows if len(row) == len(header))
    return [row for row in whole if re.fullmatch("[0-9]{1,18}", row["step"])]


def _texts(values: dict[str, object]) -> dict[str, str]:
    return {
        name: "" if value is None else format(value, _FORMATS.get(name, ""))
        for name, value in values.items()
    }
