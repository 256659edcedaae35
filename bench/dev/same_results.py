"""Whether two checkouts train the same, bit for bit: what a change of the code's shape must leave.

    python -m bench.dev.same_results OLD NEW

OLD and NEW are folders of the project. Each trains small runs on the digits, one is stopped and
resumed; rows, results and tickets are compared, all but times and memory. One line a run; exit code
1 if one differs, or cannot be made.
"""

from __future__ import annotations

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
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from sparse_engine.config.flags import Parser, run_command
from sparse_engine.errors import InputError, RunFailure

MEASURED = ("train_seconds", "peak_memory_bytes")
MLP = ("--model", "mlp", "--batch-size", "32")
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
    "rigl on gemm": Run((*WRN, "--method", "rigl", "--backend", "gemm", "--batch-size", "256")),
    "lottery": Run((*MLP, "--method", "lottery", "--rounds", "2", "--epochs", "6")),
    "dst-ensemble grouped": Run((*MLP, *GROUPED, "--epochs", "8")),
}


def main(arguments: Sequence[str]) -> None:
    """Run the command line `arguments`."""
    parser = Parser(
        prog="python -m bench.dev.same_results", description=__doc__, allow_abbrev=False
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="FOLDER")
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
        found = next(differences(*paths), None)
    print(f"{name}: {'the same' if found is None else found}", flush=True)
    return found is None


def make(run: Run, checkout: Path, folder: Path) -> None:
    """Train a run into `folder`/run with the code of a checkout.

    Raises:
        RunFailure: it does not end well.
    """
    folder.mkdir()
    process = _start(checkout, folder, "--out", "run", "--device", "cpu", *run.flags)
    if run.stop_after:
        _stop(process, folder / "run" / "metrics.csv", run.stop_after)
        process = _start(checkout, folder, "--resume", "run")
    _, words = process.communicate()
    if process.returncode:
        raise RunFailure(f"{checkout} cannot train {' '.join(run.flags)}: {words[-2000:]}")


def differences(old: Path, new: Path) -> Iterator[str]:
    """Say where two folders of make differ."""
    pairs = zip_longest(_rows(old), _rows(new), fillvalue={})
    for number, (first, second) in enumerate(pairs, 1):
        yield from _changes(f"metrics.csv, row {number}", first, second)
    yield from _changes("metrics.json", _result(old), _result(new))
    first, second = ({p.name: p for p in (f / "run").glob("member_*.pt")} for f in (old, new))
    if not first or first.keys() != second.keys():
        yield f"tickets: {sorted(first)} and {sorted(second)}"
    for name in sorted(first.keys() & second.keys()):
        yield from _changes(name, _tensors(first[name]), _tensors(second[name]))


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


def _stop(process: subprocess.Popen[str], rows: Path, epochs: int) -> None:
    """Ask a training to stop as soon as it has told of so many epochs."""
    while process.poll() is None and not (
        rows.exists() and len(rows.read_bytes().splitlines()) > epochs
    ):
        time.sleep(0.001)
    process.terminate()
    _, words = process.communicate()
    if process.returncode != 128 + signal.SIGTERM:
        raise RunFailure(
            f"a run was not stopped but ended with {process.returncode}: {words[-2000:]}"
        )


def _rows(folder: Path) -> list[dict[str, Any]]:
    with (folder / "run" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [_kept(row) for row in csv.DictReader(file)]


def _result(folder: Path) -> dict[str, Any]:
    return _kept(json.loads((folder / "run" / "metrics.json").read_text(encoding="utf-8")))


def _kept(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in MEASURED}


def _tensors(path: Path) -> dict[str, Any]:
    """Return what tensors of a ticket are made of, since no NaN equals itself."""
    import torch

    state = torch.load(path, weights_only=True)["model"]
    return {n: (t.dtype, t.shape, t.numpy().tobytes()) for n, t in state.items()}


def _changes(where: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in [*old, *(n for n in new if n not in old)]:
        if name not in old or name not in new:
            yield f"{where}: {name} is only in the {'old' if name in old else 'new'}"
        elif old[name] != new[name]:
            shown = "" if isinstance(old[name], tuple) else f": {old[name]} and {new[name]}"
            yield f"{where}: {name} differs{shown}"


if __name__ == "__main__":
    run_command(main)
