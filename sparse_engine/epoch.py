"""A row of metrics.csv: what a run is like at the end of an epoch. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

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

    epoch, step: of the whole run, so far.
    split: of NLL and accuracy.
    exploration_rate: share of the sparse layers' weights that were ever active.
    train_seconds: of training steps so far.
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
