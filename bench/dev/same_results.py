"""Whether two checkouts train the same, bit for bit: what a change of the code's shape must leave.

    python -m bench.dev.same_results OLD NEW

OLD and NEW are folders of the project. Each trains small runs on the digits, one is stopped and
resumed; rows, results and tickets are compared, all but times and memory. One line a run; exit code
1 if one differs, or cannot be made.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparse_engine.config.flags import Parser, run_command, user_path
from sparse_engine.errors import InputError, RunFailure

MEASURED = ("train_seconds", "peak_memory_bytes")
MLP = ("--model", "mlp", "--batch-size", "32", "--lr", "0.1")
WRN = ("--model", "wrn10-1", "--epochs", "2")
GROUPED = ("--method", "dst-ensemble", "--parallel", "grouped", "--members", "2")
EDST = (*MLP, "--method", "edst", "--members", "2", "--epochs", "8")


class Run(NamedTuple):
    """Flags of a training, and after how many epochs it is stopped and resumed, if it is."""

    flags: tuple[str, ...]
    stop_after: int = 0


RUNS = {
    "edst": Run(EDST),
    "edst resumed": Run(EDST, stop_after=3),
    "rigl": Run((*WRN, "--method", "rigl")),
    "rigl on native": Run(
        (*WRN, "--method", "rigl", "--backend", "native", "--batch-size", "256", "--lr", "0.1")
    ),
    "lottery": Run((*MLP, "--method", "lottery", "--rounds", "2", "--epochs", "6")),
    "dst-ensemble grouped": Run((*MLP, *GROUPED, "--epochs", "8")),
}


def main(arguments: Sequence[str]) -> None:
    """Run the command line `arguments`."""
    parser = Parser(
        prog="python -m bench.dev.same_results", description=__doc__, allow_abbrev=False
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkouts", nargs=2, type=user_path, metavar="FOLDER")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="[all]")
    flags = parser.parse_strictly(arguments)
    for path in flags.checkouts:
        if not (path / "sparse_engine" / "train.py").is_file():
            raise InputError(f"'{path}' is no checkout: it has no sparse_engine/train.py")
    differing = [name for name in flags.runs if not _report(name, *flags.checkouts)]
    if differing:
        raise RunFailure(f"{len(differing)} of {len(flags.runs)} runs differ")


def _report(name: str, old: Path, new: Path) -> bool:
    """Make a run in both checkouts, and say in a line whether they are the same."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, side) for side in ("old", "new")]
        for checkout, path in zip((old, new), paths):
            make(RUNS[name], checkout.resolve(), path)
        difference = next(differences(*paths), None)
    print(f"{name}: {difference or 'the same'}", flush=True)
    return difference is None


def make(run: Run, checkout: Path, folder: Path) -> None:
    """Train a run into `folder`/run with the code of a checkout.

    Raises:
        RunFailure: it does not end well.
    """
    folder.mkdir()
    process = _start(checkout, folder, "--out", "run", "--device", "cpu", *run.flags)
    if run.stop_after:
        rows = folder / "run" / "metrics.csv"
        while process.poll() is None and _epochs(rows) < run.stop_after:
            time.sleep(0.001)
        process.terminate()
        _, words = process.communicate()
        if (code := process.returncode) != 128 + signal.SIGTERM:
            raise RunFailure(f"a run was not stopped but ended with {code}: {words[-2000:]}")
        process = _start(checkout, folder, "--resume", "run")
    _, words = process.communicate()
    if process.returncode:
        raise RunFailure(f"{checkout} cannot train {' '.join(run.flags)}: {words[-2000:]}")


def _epochs(rows: Path) -> int:
    """Return of how many epochs a training has told, below the heading of its CSV."""
    return len(rows.read_bytes().splitlines()) - 1 if rows.exists() else 0


def differences(old: Path, new: Path) -> Iterator[str]:
    """Say where two folders of make differ."""
    first, second = _contents(old), _contents(new)
    if first["tickets: names"] == []:
        yield "tickets: there are none"
    for name in {**first, **second}:
        if name not in first or name not in second:
            yield f"{name} is only in the {'old' if name in first else 'new'}"
        elif first[name] != second[name]:
            shown = "" if isinstance(first[name], tuple) else f": {first[name]} and {second[name]}"
            yield f"{name} differs{shown}"


def _contents(folder: Path) -> dict[str, Any]:
    """Return everything that a run has left and that is compared, by file and name."""
    import torch

    run = folder / "run"
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        parts = {f"metrics.csv, row {n}": row for n, row in enumerate(csv.DictReader(file), 1)}
    parts["metrics.json"] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    tickets = sorted(run.glob("member_*.pt"))
    parts["tickets"] = {"names": [path.name for path in tickets]}
    for path in tickets:
        state = torch.load(path, weights_only=True)["model"]
        # What a tensor is made of, since no NaN equals itself.
        parts[path.name] = {
            name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in state.items()
        }
    return {
        f"{part}: {name}": value
        for part, values in parts.items()
        for name, value in values.items()
        if name not in MEASURED
    }


def _start(checkout: Path, folder: Path, *flags: str) -> subprocess.Popen[str]:
    # Neither times measured on this machine nor a number of threads may decide anything.
    place = {"PYTHONPATH": f"{checkout / 'kernels'}{os.pathsep}{checkout}", "OMP_NUM_THREADS": "1"}
    place |= {"SPARSE_ENGINE_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "sparse_engine.train", *flags],
        cwd=folder,
        env={**os.environ, **place},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    run_command(main)
