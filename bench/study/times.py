"""What the steps of a study's networks take, each in turn with the dense network's.

Runs of a study share a machine, so their own seconds say little. Here one network after the other
is timed against the dense one: a usual training step, and one that updates the topology.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.report.records import append_row, environment, now
from bench.speed.timing import STEP, clock_of, in_turn, ratios
from bench.speed.trainer_step import trainer_step
from bench.study.grid import Run, Study
from sparse_engine.config.config import Config
from sparse_engine.config.values import check_values
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.data.load import dataset_info
from sparse_engine.methods.resolve import resolve
from sparse_engine.training.budget import settled
from sparse_engine.training.network import build_network
from sparse_engine.training.run import plan_phases

# point: of a run without its seed. step_ratio, update_ratio: median of the rounds' ratios to a
# usual step of the dense network that the study's own settings name. training_ratio: of a whole
# training to `dense_epochs` of it.
COLUMNS = (
    "point", "step_ratio", "ratio_p20", "ratio_p80", "update_ratio", "training_ratio",
    "dense_ms", "n", "dtype", "device", "driver", "threads", "torch", "triton", "commit", "run",
)  # fmt: skip
METHODS = ("dense", "static", "set", "rigl", "edst", "dst-ensemble", "deep-ensemble")


def point_of(run: Run) -> str:
    """Return what a run shares with those of other seeds, as JSON."""
    return json.dumps({k: v for k, v in run.settings.items() if k != "seed"}, sort_keys=True)


def read_times(path: Path) -> dict[str, dict[str, str]]:
    """Return the last row of each point; none without a file."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["point"]: row for row in csv.DictReader(file)}


def time_study(
    study: Study, path: Path, data_dir: str | None, threads: int = 1, rounds: int = 5
) -> None:
    """Append a row for each point that has none, but those whose network changes its blocks.

    Args:
        study: whose networks are timed.
        path: of the CSV.
        data_dir: where the trainer finds the study's data.
        threads: of a CPU.
        rounds: that are kept.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    info = dataset_info(study.data.name, data_dir)
    facts = {**environment(device.type), "run": now(), "n": rounds}
    done = read_times(path)
    dense = _resolved(_shared_with_dense(study), study, data_dir)
    for run in study.runs():
        point = point_of(run)
        if point in done:
            continue
        config = _resolved(run.settings, study, data_dir)
        if config.method not in METHODS:
            print(f"no time of method '{config.method}': its networks change size", flush=True)
            continue
        config = settled(config, info, device)
        done[point] = row = _row(config, dense, info, device, rounds, facts)
        row["point"] = point
        append_row(path, COLUMNS, row)
        print(f"{row['step_ratio']:.3f} {row['training_ratio']:.3f} {run.point}", flush=True)


def _row(
    config: Config,
    dense: Config,
    info: DatasetInfo,
    device: torch.device,
    rounds: int,
    facts: dict[str, Any],
) -> dict[str, Any]:
    phases = plan_phases(config, info.train_size)
    steps = sum(phase.steps for phase in phases)
    schedules = [(phase.steps, phase.update_schedule()) for phase in phases]
    updates = sum(schedule.updates_in(n) for n, schedule in schedules if schedule)
    contenders = {
        "dense": {STEP: _step(dense, info, device)},
        "step": {STEP: _step(config, info, device)},
    }
    if updates:
        contenders["update"] = {STEP: _step(config, info, device, update=True)}
    clock = clock_of(device.type)
    seconds = {n: t[STEP] for n, t in in_turn(contenders, rounds, clock, warm_up=4).items()}
    ratio = {
        name: statistics.median(a / b for a, b in zip(taken, seconds["dense"]))
        for name, taken in seconds.items()
    }
    whole = ratio["step"] * (steps - updates) + ratio.get("update", 0.0) * updates
    return {
        **facts,
        **ratios(seconds["step"], seconds["dense"]),
        "step_ratio": ratio["step"],
        "update_ratio": ratio.get("update"),
        "training_ratio": whole / (steps * config.dense_epochs / config.epochs),
        "dense_ms": 1e3 * statistics.median(seconds["dense"]),
        "dtype": config.dtype,
    }


def _shared_with_dense(study: Study) -> dict[str, Any]:
    """Return what the study says of all runs, as far as it is of a dense one."""
    kept = ("model", "batch_size", "dtype", "epochs", "dense_epochs", "dropout")
    shared = {name: value for name, value in study.settings.items() if name in kept}
    return {**shared, "dataset": study.data.name, "method": "dense"}


def _resolved(settings: dict[str, Any], study: Study, data_dir: str | None) -> Config:
    checked = check_values(settings, f"study '{study.name}'")
    return resolve(Config(**checked, data_dir=data_dir))


def _step(
    config: Config, info: DatasetInfo, device: torch.device, update: bool = False
) -> Callable[[], None]:
    """Return a training step of a run's network, or one after which its blocks change."""
    network = build_network(config, info, device)
    step = trainer_step(network, config, info, config.batch_size)

    def run() -> None:
        if update:
            network.topology.arm()
        step()
        if update:
            network.topology.update(config.drop or 0.3)

    return run
