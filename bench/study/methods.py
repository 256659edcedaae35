"""Train every method on one small data set with several seeds, and write the table.

    python -m bench.study.methods --data-dir DIR --prepare 5000 2000    from DIR/cifar10.npz
    python -m bench.study.methods --data-dir DIR --out runs/methods --seeds 3 --processes 2
    python -m bench.study.methods --out runs/methods --write docs/results/cifar10-small.md

The small set has every second pixel averaged away (16x16) and the first images of each split. A run
that is finished is not repeated, so the command can be interrupted and given again.
"""

import argparse
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench.report.tables import markdown
from bench.study.grid import Data, Grid, Run, Study
from bench.study.runs import Runner, Table
from bench.study.small_data import cut
from sparse_engine.config.flags import run_command, user_path

NAME = "cifar10-small"
DENSE = ("dense", "mc-dropout", "batch-ensemble", "mimo", "treenet", "snapshot", "fge")
SEVERAL_MEMBERS = (
    "batch-ensemble", "mimo", "treenet", "snapshot", "fge", "edst", "dst-ensemble", "ltr", "pf",
    "deep-ensemble",
)  # fmt: skip
# In the order of the table.
METHODS = (
    "dense", "static", "set", "rigl", "snfs", "granet", "sup-tickets", "lottery", "kd-ticket",
    "mc-dropout", *SEVERAL_MEMBERS,
)  # fmt: skip
PUPILS = ("kd-ticket",)  # whose teachers' runs come first
COLUMNS = ("accuracy", "nll", "ece", "training FLOPs", "test_flops_ratio")


def study(methods: Iterable[str], seeds: int, out: Path, shared: Mapping[str, Any]) -> Study:
    """Return methods as runs of several seeds that share some settings."""
    runs = []
    for seed, method in itertools.product(range(seeds), methods):
        settings = {**shared, "dataset": NAME, "method": method, "seed": seed}
        if method in SEVERAL_MEMBERS:
            settings["members"] = 3
        if method == "mc-dropout":
            settings["dropout"] = 0.1
        if method in PUPILS:
            settings["teacher"] = str(out / f"dense-{seed}")
        if method not in (*DENSE, "deep-ensemble"):
            settings |= {"sparsity": 0.8, "block": "1x1"}
        runs.append(Run(f"{method}-{seed}", settings, (("method", method),), seed))
    return Study("methods", "All methods", Data(NAME), {}, (Grid("methods", tuple(runs), {}),))


def results(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the finished runs by method."""
    finished: dict[str, list[dict[str, Any]]] = {}
    for method in METHODS:
        paths = sorted(out.glob(f"{method}-[0-9]*/metrics.json"))
        if runs := [json.loads(path.read_text()) for path in paths]:
            finished[method] = runs
    # Against one dense network of this table; a run's own ratio is against its own epochs.
    dense = mean([run["train_flops"] for run in finished.get("dense", [])] or [1.0])
    for runs in finished.values():
        for run in runs:
            run["training FLOPs"] = run["train_flops"] / dense
    return finished


def markdown_table(finished: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table: mean and, in brackets, lowest and highest over several seeds."""
    cells = []
    for method, runs in finished.items():
        members = [run["member_accuracy"] for run in runs]
        facts = [f"{len(runs)}", f"{len(members[0])}", f"{mean(map(mean, members)):.3f}"]
        for column in COLUMNS:
            values = [run[column] for run in runs]
            several = len(values) > 1 and column in COLUMNS[:3]
            spread = f" ({min(values):.3f}-{max(values):.3f})" if several else ""
            facts.append(f"{mean(values):.3f}{spread}")
        cells.append([method, *facts])
    return markdown(("method", "n", "tickets", "mean member", *COLUMNS), cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, train or write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data-dir", type=user_path, help="folder of cifar10.npz and the small set"
    )
    parser.add_argument("--prepare", type=int, nargs=2, metavar=("TRAIN", "TEST"))
    parser.add_argument(
        "--out", type=user_path, default=Path("runs/methods"), help="folder of the runs"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", default="wrn10-1")
    parser.add_argument("--scale", type=float, default=0.4, help="of the recipe's 30 epochs")
    parser.add_argument("--write", type=user_path, help="Markdown file whose table is replaced")
    options = parser.parse_args(arguments)
    if options.prepare:
        folder = options.data_dir
        return cut(folder / "cifar10.npz", folder / f"{NAME}.npz", options.prepare, 16)
    if options.data_dir:
        shared = {"model": options.model, "scale": options.scale}
        table, place = Table(options.out / "runs.csv"), (options.out, str(options.data_dir), "cpu")
        for methods in ([method for method in METHODS if method not in PUPILS], PUPILS):
            chosen = study(methods, options.seeds, options.out, shared)
            Runner(chosen, table, *place, keep=True).run(options.processes)
    written = markdown_table(results(options.out))
    print(written)
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        head = text[: text.index("<!-- table -->")]
        options.write.write_text(f"{head}<!-- table -->\n\n{written}\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
