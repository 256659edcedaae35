"""How long checkpoints take and how large they are against dense: python -m bench.dev.checkpoints

A checkpoint is what a run writes: model, momenta, blocks and all else (trainer_state.state_of).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.report.tables import markdown
from sparse_engine.config.config import Config
from sparse_engine.data.load import load_dataset
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs.run_folder import RunFolder
from sparse_engine.training.run import plan_phases
from sparse_engine.training.state import restore, state_of
from sparse_engine.training.trainer import Trainer

SPARSITIES = (0.0, 0.8, 0.9)
COLUMNS = ("sparsity", "MB", "/ dense", "write, s", "/ dense", "resume, s", "/ dense")


def measure(model: str, block: str, sparsity: float, repeats: int) -> tuple[float, float, float]:
    """Return a checkpoint's bytes, and the median seconds to write and to continue from one."""
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
        write = seconds(lambda: folder.save_checkpoint(state_of(run)), repeats)
        again = Trainer(config, phases, data, folder, torch.device("cpu"))

        def resume() -> None:
            again.progress = type(again.progress)()
            restore(again)

        return folder.last.stat().st_size, write, seconds(resume, repeats)


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="wrn16-4")
    parser.add_argument("--block", default="32x32")
    parser.add_argument("--repeats", type=int, default=9)
    flags = parser.parse_args(arguments)
    found = {s: measure(flags.model, flags.block, s, flags.repeats) for s in SPARSITIES}
    rows = []
    for sparsity, (size, write, resume) in found.items():
        numbers = ((size / 1e6, "{:.2f}"), (write, "{:.3f}"), (resume, "{:.3f}"))
        cells = [f"{sparsity:g}" if sparsity else "dense"]
        for (number, form), dense in zip(numbers, found[0.0]):
            whole = number * 1e6 if form == "{:.2f}" else number
            cells += [form.format(number), f"{whole / dense:.2f}"]
        rows.append(cells)
    print(markdown(COLUMNS, rows))


if __name__ == "__main__":
    main()
