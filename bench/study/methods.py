"""Train every method on one small data set with several seeds, and write the table.

    python -m bench.study.methods --data-dir DIR --prepare 5000 2000    from DIR/cifar10.npz
    python -m bench.study.methods --data-dir DIR --out runs/methods --seeds 3 --processes 2
    python -m bench.study.methods --out runs/methods --write docs/results/cifar10-small.md

The small set has every second pixel averaged away (16x16) and the first images of each split. A run
that is finished is not repeated, so the command can be interrupted and given again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from bench.study.small_data import cut

NAME = "cifar10-small"
MEMBERS = ("--members", "3")
# In the order of the table; a teacher's run comes before its pupils.
METHODS: dict[str, tuple[str, ...]] = {
    "dense": (),
    "static": (),
    "set": (),
    "rigl": (),
    "snfs": (),
    "granet": (),
    "sup-tickets": (),
    "lottery": (),
    "kd-ticket": (),
    "mc-dropout": ("--dropout", "0.1"),
    "batch-ensemble": MEMBERS,
    "mimo": MEMBERS,
    "treenet": MEMBERS,
    "snapshot": MEMBERS,
    "fge": MEMBERS,
    "edst": MEMBERS,
    "dst-ensemble": MEMBERS,
    "ltr": MEMBERS,
    "pf": MEMBERS,
    "deep-ensemble": MEMBERS,
}
PUPILS = ("kd-ticket",)
DENSE = ("dense", "mc-dropout", "batch-ensemble", "mimo", "treenet", "snapshot", "fge")
COLUMNS = ("accuracy", "nll", "ece", "training FLOPs", "test_flops_ratio")


def prepare(folder: Path, train: int, test: int) -> None:
    """Write the small set from folder/cifar10.npz."""
    cut(folder / "cifar10.npz", folder / f"{NAME}.npz", (train, test), 16)


def command(method: str, seed: int, out: Path, common: Sequence[str]) -> list[str]:
    """Return the command line of one run."""
    flags = list(METHODS[method])
    if method in PUPILS:
        flags += ["--teacher", str(out / f"dense-{seed}")]
    if method not in (*DENSE, "deep-ensemble"):
        flags += ["--sparsity", "0.8", "--block", "1x1"]
    folder = ["--out", str(out / f"{method}-{seed}"), "--seed", str(seed), "--device", "cpu"]
    return [
        sys.executable,
        "-m",
        "sparse_engine.train",
        "--method",
        method,
        *flags,
        *common,
        *folder,
    ]


def train(method: str, seed: int, out: Path, common: Sequence[str]) -> None:
    """Run one method with one seed, unless it is finished; a run that was cut off is resumed."""
    folder = out / f"{method}-{seed}"
    if (folder / "metrics.json").exists():
        return
    arguments = command(method, seed, out, common)
    if (folder / "config.json").exists():
        arguments = [sys.executable, "-m", "sparse_engine.train", "--resume", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    last = (done.stderr if done.returncode else done.stdout).strip().splitlines()[-1:]
    print(f"{method} {seed}: exit {done.returncode} {''.join(last)[:300]}", flush=True)


def results(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the finished runs by method."""
    found: dict[str, list[dict[str, Any]]] = {}
    for method in METHODS:
        paths = sorted(out.glob(f"{method}-[0-9]*/metrics.json"))
        runs = [json.loads(path.read_text()) for path in paths]
        if runs:
            found[method] = runs
    # Against one dense network of this table; a run's own ratio is against its own epochs.
    dense = statistics.mean([run["train_flops"] for run in found.get("dense", [])] or [1.0])
    for run in itertools.chain.from_iterable(found.values()):
        run["training FLOPs"] = run["train_flops"] / dense
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table: mean and, in brackets, lowest and highest over several seeds."""
    lines = ["| method | n | tickets | mean member | " + " | ".join(COLUMNS) + " |"]
    lines.append("|---" * (4 + len(COLUMNS)) + "|")
    for method, runs in found.items():
        members = statistics.mean(statistics.mean(run["member_accuracy"]) for run in runs)
        cells = [method, f"{len(runs)}", f"{len(runs[0]['member_accuracy'])}", f"{members:.3f}"]
        for column in COLUMNS:
            values = [run[column] for run in runs]
            several = len(values) > 1 and column in COLUMNS[:3]
            spread = f" ({min(values):.3f}-{max(values):.3f})" if several else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prepare, train or write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder of cifar10.npz and the small set")
    parser.add_argument("--prepare", type=int, nargs=2, metavar=("TRAIN", "TEST"))
    parser.add_argument("--out", type=Path, default=Path("runs/methods"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", default="wrn10-1")
    parser.add_argument("--scale", default="0.4", help="of the recipe's 30 epochs a network")
    parser.add_argument("--write", type=Path, help="Markdown file whose table is replaced")
    options = parser.parse_args()
    if options.prepare:
        return prepare(options.data_dir, *options.prepare)
    if options.data_dir:
        common = ["--dataset", NAME, "--data-dir", str(options.data_dir)]
        common += ["--model", options.model, "--scale", options.scale]
        for seed in range(options.seeds):
            for group in (set(METHODS) - set(PUPILS), PUPILS):
                with ThreadPoolExecutor(options.processes) as pool:
                    chosen = [m for m in METHODS if m in group]
                    list(
                        pool.map(partial(train, seed=seed, out=options.out, common=common), chosen)
                    )
    written = table(results(options.out))
    print(written)
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        head = text[: text.index("<!-- table -->")]
        options.write.write_text(f"{head}<!-- table -->\n\n{written}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
