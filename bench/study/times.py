"""What the steps of a study's networks take, each in turn with the dense network's.

Runs of a study share a machine, so their own seconds say little. Here one network after the other
is timed against the dense one: a usual training step, and one that updates the topology.
"""

import itertools
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.report.records import append_row, environment, now, read
from bench.speed.timing import clock_of, ratios, steps_in_turn
from bench.study.grid import Settings, Study
from sparse_engine.config.config import Config
from sparse_engine.config.values import check_values
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.data.load import dataset_info
from sparse_engine.methods.resolve import resolve
from sparse_engine.training.network import build_network
from sparse_engine.training.run import plan_phases
from sparse_engine.training.times.budget import resolve_budget
from sparse_engine.training.times.step_times import random_step, updating_step

# point: of a run without its seed. step_ratio, update_ratio: median of the rounds' ratios to a
# usual step of the dense network that the study's own settings name. training_ratio: of a whole
# training to `dense_epochs` of it.
COLUMNS = (
    "point", "step_ratio", "ratio_p20", "ratio_p80", "update_ratio", "training_ratio",
    "dense_ms", "n", "dtype", "device", "driver", "threads", "torch", "triton", "commit", "run",
)  # fmt: skip
SHARED_WITH_DENSE = ("model", "batch_size", "dtype", "epochs", "dense_epochs", "dropout")
METHODS = ("dense", "static", "set", "rigl", "edst", "dst-ensemble", "deep-ensemble")
# Which blocks an update replaces, and at which learning rate they grow: a step does the same.
RATES = ("drop", "drop_schedule", "restart", "escape", "cover")


def point_of(settings: Settings) -> str:
    """Return what a run's settings share with those of other seeds, as JSON."""
    return json.dumps({k: v for k, v in settings.items() if k != "seed"}, sort_keys=True)


def read_times(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Return the last row of each point, by the machine that it was timed on; none without a file.

    A machine is a device and its threads, in words.
    """
    machines: dict[str, dict[str, dict[str, str]]] = {}
    for row in read(path, COLUMNS, "--table"):
        machine = _machine(row["device"], int(row["threads"]))
        machines.setdefault(machine, {})[row["point"]] = row
    return machines


def _machine(device: str, threads: int) -> str:
    return f"{device}, {threads} thread{'s' * (threads > 1)}"


def time_of(times: Mapping[str, Mapping[str, str]], settings: Settings) -> Any:
    """Return the row of a run's point, or of one that differs in RATES alone; None without.

    Args:
        times: of one machine, as `read_times` returns them.
        settings: of the run.
    """
    if row := times.get(point_of(settings)):
        return row
    wanted = step_of(settings)
    return next((row for p, row in times.items() if step_of(json.loads(p)) == wanted), None)


def step_of(settings: Settings) -> str:
    """Return what a run's settings share with those of runs whose steps take as long, as JSON."""
    return point_of({name: value for name, value in settings.items() if name not in RATES})


def time_study(
    study: Study, path: Path, data_dir: str | None, threads: int = 1, rounds: int = 5
) -> None:
    """Append a row for each point that this machine has none of.

    None is made of methods whose network changes in size.

    Runs that differ in RATES alone share a row.

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
    facts = {**environment(device.type), "run": now(), "n": rounds}
    done = read_times(path).get(_machine(facts["device"], threads), {})
    # What the study says of all runs, as far as it is of a dense one.
    dense = {n: v for n, v in study.settings.items() if n in SHARED_WITH_DENSE}
    dense |= {"dataset": study.data.name, "method": "dense"}
    larger = [study.projection.of] if study.projection else []
    for run, change in itertools.product(study.runs(), (dict, *larger)):
        settings = change(run.settings)
        if time_of(done, settings):
            continue
        config = _resolved(settings, study, data_dir)
        if config.method not in METHODS:
            print(f"no time of method '{config.method}': its networks change size", flush=True)
            continue
        info = dataset_info(config.dataset, data_dir)
        config = resolve_budget(config, info, device)
        times = _times(config, _resolved(change(dense), study, data_dir), info, device, rounds)
        point = point_of(settings)
        done[point] = append_row(path, COLUMNS, {**facts, **times, "point": point})
        ratios = f"{times['step_ratio']:.3f} {times['training_ratio']:.3f}"
        print(f"{ratios} {config.model} {run.point}", flush=True)


def _times(
    config: Config, dense: Config, info: DatasetInfo, device: torch.device, rounds: int
) -> dict[str, Any]:
    phases = plan_phases(config, info.train_size)
    schedules = [(phase.steps, phase.update_schedule()) for phase in phases]
    updates = sum(schedule.updates_in(steps) for steps, schedule in schedules if schedule)
    steps = {"dense": _step(dense, info, device), "step": _step(config, info, device)}
    if updates:
        steps["update"] = _step(config, info, device, update=True)
    seconds = steps_in_turn(steps, rounds, clock_of(device.type), warm_up=4)
    ratio = {
        name: statistics.median(ours / theirs for ours, theirs in zip(own, seconds["dense"]))
        for name, own in seconds.items()
    }
    count = sum(phase.steps for phase in phases)
    whole = ratio["step"] * (count - updates) + ratio.get("update", 0.0) * updates
    return {
        **ratios(seconds["step"], seconds["dense"]),
        "step_ratio": ratio["step"],
        "update_ratio": ratio.get("update"),
        "training_ratio": whole / (count * config.dense_epochs / config.epochs),
        "dense_ms": 1e3 * statistics.median(seconds["dense"]),
        "dtype": config.dtype,
    }


def _resolved(settings: Settings, study: Study, data_dir: str | None) -> Config:
    checked = check_values(settings, f"study '{study.name}'")
    return resolve(Config(**checked, data_dir=data_dir))


def _step(
    config: Config, info: DatasetInfo, device: torch.device, update: bool = False
) -> Callable[[], None]:
    """Return a training step of a run's network, or one after which its blocks change."""
    network = build_network(config, info, device)
    step = random_step(network, config, info, config.batch_size)
    return updating_step(network, step, config.drop or 0.3) if update else step
