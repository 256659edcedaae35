"""What a study has found, put together for `sparse-engine plan`: a row for each training."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.study.grid import Run, Settings, Study
from bench.study.table import Rows
from bench.study.times import point_of
from sparse_engine.config.config import BASELINES, ENSEMBLE, FIELDS, PRUNING, SPARSITY
from sparse_engine.data.catalog import TABLE
from sparse_engine.errors import InputError
from sparse_engine.methods.recipes import recipe_for
from sparse_engine.methods.registry import METHODS
from sparse_engine.planning.rows import Row, write_rows

# What a row has columns of its own for.
APART = ("seed", "dataset", "model", "epochs", "dense_epochs")
# Groups of settings that say what a training is; the others say how all of a study's are made.
OF_TRAININGS = {group.name for group in (SPARSITY, ENSEMBLE, BASELINES, PRUNING)}
# Seeds below which nothing is concluded.
LEAST_SEEDS = 2
# A training of one seed, and the dense run of that seed.
Pair = tuple[Mapping[str, str], Mapping[str, str]]


def write_plan(study: Study, rows: Rows, path: Path) -> None:
    """Write the rows of a study in place of those in a file."""
    found = plan_rows(study, rows)
    write_rows(path, found)
    print(f"{len(found)} trainings of study {study.name} in {path}")


def plan_rows(study: Study, rows: Rows) -> list[Row]:
    """Return a row for each training of a study that two seeds or more were made of.

    Seeds count that the dense run has too: the study's own model, as long as `dense_epochs`.

    Args:
        study: whose settings name `model` and `dense_epochs`.
        rows: of its runs, by key.

    Raises:
        InputError: they do not, or the size of the study's images is not known.
    """
    data, info = study.data, TABLE.get(study.data.dataset)
    if not {"model", "dense_epochs"} <= study.settings.keys():
        raise InputError(f"study '{study.name}': settings should say model and dense_epochs")
    if info is None and None in (data.pixels, data.train):
        raise InputError(f"study '{study.name}': data should say pixels and train")
    trainings: dict[str, list[Run]] = {}
    for run in study.runs():
        trainings.setdefault(point_of(run.settings), []).append(run)
    dense = next((runs for runs in trainings.values() if _is_dense_run(study, runs[0])), [])
    against = {run.seed: rows[run.key] for run in dense if run.key in rows}
    found = []
    for runs in trainings.values():
        own = [run for run in runs if run.key in rows and run.seed in against]
        if len(own) >= LEAST_SEEDS:
            pairs = [(rows[run.key], against[run.seed]) for run in own]
            found.append(_row(study, runs[0].settings, pairs))
    return found


def _is_dense_run(study: Study, run: Run) -> bool:
    wanted = {"method": "dense", "epochs": study.settings["dense_epochs"]}
    return {**run.settings, **wanted, "model": study.settings["model"]} == run.settings


def _row(study: Study, settings: Settings, pairs: Sequence[Pair]) -> Row:
    data, info, (first, _) = study.data, TABLE.get(study.data.dataset), pairs[0]
    accuracies = [float(ours["accuracy"]) for ours, _ in pairs]
    each = [float(ours["accuracy"]) - float(dense["accuracy"]) for ours, dense in pairs]
    return Row(
        study=study.name,
        model=study.settings["model"],
        network=first["model"],
        settings=_own(study, settings, first),
        epochs=int(first["epochs"]),
        dense_epochs=study.settings["dense_epochs"],
        n=len(pairs),
        accuracy=statistics.mean(accuracies),
        deviation=statistics.stdev(accuracies),
        difference=statistics.mean(each),
        error=statistics.stdev(each) / math.sqrt(len(each)),
        nll=statistics.mean(float(ours["nll"]) for ours, _ in pairs),
        ece=statistics.mean(float(ours["ece"]) for ours, _ in pairs),
        dataset=data.name,
        pixels=data.pixels or (info.height if info else 0),
        images=data.train or (info.train_size if info else 0),
        batch_size=settings.get("batch_size", recipe_for(data.name).batch_size),
        device=first["device"],
        dtype=first["dtype"],
    )


def _own(study: Study, settings: Settings, row: Mapping[str, str]) -> Settings:
    """Return what tells a training from others, and what a recipe has decided of it.

    Another data set's recipe might decide otherwise.
    """
    method = METHODS[row["method"]]
    own: Settings = {"method": row["method"]}
    if method.least_members is not None:
        own["members"] = int(row["members"])
    if method.usual_sparsity:
        own |= {"block": row["block"], "distribution": row["distribution"]}
        if row["distribution"] != "timed":
            own["sparsity"] = float(row["sparsity"])
    for name, value in settings.items():
        group, of_all = FIELDS[name].metadata["group"], study.settings.get(name) == value
        if name in APART or (group == SPARSITY.name and not method.usual_sparsity):
            continue
        if group in OF_TRAININGS or not of_all:
            own[name] = value
    return own
