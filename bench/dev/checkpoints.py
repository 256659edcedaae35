"""How long checkpoints take and how large they are against dense: python -m bench.dev.checkpoints

A checkpoint is what a run writes: model, momenta, blocks and all else (trainer_state.state_of).
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.dev.harness import print_table
from bench.speed.timing import WALL, quantile, steps_in_turn
from sparse_engine.config.config import Config
from sparse_engine.data.load import load_dataset
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs.run_folder import RunFolder
from sparse_engine.training.run import plan_phases
from sparse_engine.training.state import restore, state_of
from sparse_engine.training.trainer import Trainer

COLUMNS = ("sparsity", "MB", "/ dense", "write, s", "/ dense", "resume, s", "/ dense")
FLAGS = {"model": "wrn16-4", "block": "32x32", "repeats": 9}


def measure(model: str, block: str, sparsity: float, repeats: int) -> tuple[float, ...]:
    """Return a checkpoint's MB, and the median seconds to write and to continue from one."""
    settings = {"method": "static", "sparsity": sparsity} if sparsity else {"method": "dense"}
    config = resolve(
        Config(model=model, block=block, distribution="uniform", device="cpu", **settings)
    )
    data = load_dataset("digits", None)
    phases = plan_phases(config, len(data.train))
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        run = Trainer(config, phases, data, folder, torch.device("cpu"))
        for action in phases[0].begin:
            action(run)
        run.densities.phases += run.network.densities()
        run.progress.begun = True
        again = Trainer(config, phases, data, folder, torch.device("cpu"))

        def write() -> None:
            folder.save_checkpoint(state_of(run))

        def resume() -> None:
            again.progress = type(again.progress)()
            restore(again)

        # One after the other, so that neither finds the other's caches.
        times = [steps_in_turn({"": step}, repeats, WALL)[""] for step in (write, resume)]
        return folder.last.stat().st_size / 1e6, *(quantile(seconds, 0.5) for seconds in times)


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for the dense network and each sparsity."""
    dense = None
    for sparsity in (0.0, 0.8, 0.9):
        numbers = measure(options.model, options.block, sparsity, options.repeats)
        dense = dense or numbers
        cells = [f"{sparsity:g}" if sparsity else "dense"]
        for number, digits, of_dense in zip(numbers, (2, 3, 3), dense):
            cells += [f"{number:.{digits}f}", f"{number / of_dense:.2f}"]
        yield cells


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
