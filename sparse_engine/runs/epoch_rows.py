"""The rows of metrics.csv, one an epoch."""

import csv
import re
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
}


class EpochRow(NamedTuple):
    """One epoch; loss, NLL and accuracy are means over the members that train as one, if they do.

    epoch, step: those of the whole run so far.
    split: the split that NLL and accuracy are of.
    exploration_rate: the share of the sparse layers' weights that were ever active.
    train_seconds: the seconds of training steps so far.
    """

    epoch: int
    step: int
    phase: str
    learning_rate: float
    train_loss: float
    split: str
    nll: float
    accuracy: float
    exploration_rate: float
    train_seconds: float

    def texts(self) -> dict[str, str]:
        """Return the row as the file holds it."""
        return {
            name: format(value, _FORMATS.get(name, "")) for name, value in self._asdict().items()
        }


COLUMNS = EpochRow._fields


def whole_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv but those cut short, as the last one may be.

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
    if header != list(COLUMNS):
        raise InputError(f"'{path}' is damaged; move it away, and later epochs are written anew")
    whole = (dict(zip(COLUMNS, row)) for row in rows if len(row) == len(COLUMNS))
    return [row for row in whole if re.fullmatch("[0-9]{1,18}", row["step"])]
