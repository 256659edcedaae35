"""What a run tells while it trains: a line an epoch without a terminal, and TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from sparse_engine.installed import require
from sparse_engine.layers.base import SparseLayer
from sparse_engine.runs.epoch_rows import EpochRow

FOLDER = "tensorboard"  # in a run folder
_SCALARS = ("learning_rate", "train_loss", "nll", "accuracy", "exploration_rate")


class EpochLog:
    """Tells of epochs: nowhere, unless a line or a writer of TensorBoard is wanted."""

    def __init__(self, with_line: bool, writer: Any = None) -> None:
        """Print a line on stderr for each epoch, if wanted, and write to a writer, if given."""
        self._with_line, self._writer = with_line, writer

    def add(
        self, row: EpochRow, epochs: int, seconds_left: float, models: Sequence[nn.Module]
    ) -> None:
        """Tell of an epoch.

        Args:
            row: of metrics.csv.
            epochs: of the whole run.
            seconds_left: of the whole run.
            models: the networks in training, whose blocks are drawn.
        """
        if self._with_line:
            print(
                f"{row.phase}: epoch {row.epoch}/{epochs}, step {row.step}, {in_words(row)}, "
                f"{tqdm.format_interval(seconds_left)} left",
                file=sys.stderr,
                flush=True,
            )
        if self._writer is not None:
            for name in _SCALARS:
                if (value := getattr(row, name)) is not None:
                    self._writer.add_scalar(name, value, row.step)
            for number, model in enumerate(models, 1):
                prefix = f"member {number}/" if len(models) > 1 else ""
                self._add_layers(prefix, model, row.step)
            self._writer.flush()

    def _add_layers(self, prefix: str, model: nn.Module, step: int) -> None:
        for name, layer in model.named_modules():
            if isinstance(layer, SparseLayer):
                self._writer.add_scalar(f"density/{prefix}{name}", layer.density, step)
                self._writer.add_image(f"blocks/{prefix}{name}", block_picture(layer), step)


@contextmanager
def epoch_log(kind: str, folder: Path, step: int, is_first: bool) -> Iterator[EpochLog]:
    """Give the log of a run.

    Args:
        kind: "none" or "tensorboard".
        folder: of the run.
        step: where a run goes on; what TensorBoard has of later ones is from before it was killed.
        is_first: whether this process tells at all.
    """
    if not is_first:
        yield EpochLog(False)
        return
    with_line = not sys.stderr.isatty()
    if kind == "none":
        yield EpochLog(with_line)
        return
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / FOLDER), purge_step=step + 1 if step else None)
    try:
        yield EpochLog(with_line, writer)
    finally:
        writer.close()


def in_words(row: EpochRow) -> str:
    """Return the loss of an epoch, and how good the network is on which split, if that is known."""
    loss = f"train loss {row.train_loss:.3f}"
    return loss if row.accuracy is None else f"{loss}, {row.split} accuracy {row.accuracy:.4f}"


def check_log(kind: str) -> None:
    """Raise InputError if what is needed to log so is not installed."""
    if kind == "tensorboard":
        require("--log tensorboard", "tensorboard")


def block_picture(layer: SparseLayer) -> Tensor:
    """Return which blocks are active as an image [1, OB * R, CB * S] of 0 and 1, active dark."""
    mask = layer.layout.mask()  # [OB, CB, R, S]
    outputs, inputs, height, width = mask.shape
    image = mask.permute(0, 2, 1, 3).reshape(1, outputs * height, inputs * width)
    return 1 - image.float().cpu()
