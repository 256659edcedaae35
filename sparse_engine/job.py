"""A training run from its configuration to its last line of output."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparse_engine.architecture import members_of
from sparse_engine.config import Config
from sparse_engine.costs import run_costs
from sparse_engine.data.arrays import DataSet
from sparse_engine.data.catalog import dataset_info
from sparse_engine.data.load import load_dataset
from sparse_engine.data.loader import count_steps, split_validation
from sparse_engine.determinism import repeatable
from sparse_engine.distributed import World, joined
from sparse_engine.errors import InputError
from sparse_engine.evaluation import batches, ensemble_metrics, metrics_table, predict
from sparse_engine.member_runs import Trained, check_independent, train_members
from sparse_engine.methods.registry import build_phases
from sparse_engine.phases import Phase
from sparse_engine.precision import DTYPES
from sparse_engine.recipes import warmup_share
from sparse_engine.run_folder import RunFolder, WatchedFolder
from sparse_engine.settle import settled
from sparse_engine.summary import format_table
from sparse_engine.teacher import Teacher, load_teacher
from sparse_engine.tickets import load_tickets
from sparse_engine.trainer import Trainer
from sparse_engine.trainer_state import restore
from sparse_engine.tune import tune_run
from sparse_kernels.backend import VARIABLE, BackendError, check_backend, choose_backend


def train(config: Config, folder: RunFolder | None = None) -> dict[str, Any] | None:
    """Train a resolved configuration, print its table and its JSON line, and return the result.

    Of the processes that torchrun has started only the first prints and returns it.

    Args:
        config: of recipes.resolve.
        folder: of a run to continue; None starts a new one.

    Raises:
        InputError: before anything is written; RunFailure: after the last good checkpoint;
            Stopped: by a signal, after a checkpoint.
    """
    with repeatable(config.deterministic):
        return _train_together(config, folder)


def _train_together(config: Config, folder: RunFolder | None) -> dict[str, Any] | None:
    device = choose_device(config)
    with joined(config.timeout, device.type == "cuda") as world:
        if world.size > 1:
            check_parallel(config, world.size)
            device = _own_device(device, world)
        return _train(config, folder, device, world)


def _train(
    config: Config, folder: RunFolder | None, device: torch.device, world: World
) -> dict[str, Any] | None:
    with world.first_before_others():
        data = load_dataset(config.dataset, config.data_dir, config.download)
    # Measured times decide: one process's for all.
    config = world.of_first(settled(config, data.info, device) if world.is_first else None)
    phases = plan_phases(config, training_images(config, data))
    run_costs(config, data.info, phases)
    teacher = load_teacher(config, data.info, device)
    if config.parallel == "members":
        check_independent(config, phases)
    if config.tune:
        if world.is_first:
            print(f"tuned {tune_run(config, data.info, device)}")
        world.gather(None)
    with _open_folder(config, folder, world) as folder:
        if world.is_first:
            print(f"{config.method} on {config.dataset}, {config.model}, run folder {folder.path}")
        trained = _run(config, data, phases, folder, device, teacher, world)
        if not world.is_first:
            return None
        found = evaluate_members(config, data, folder, device)
        costs = run_costs(config, data.info, phases, trained.densities)
        result = describe(config, device, costs, found, trained.seconds)
        result["skipped_steps"], result["processes"] = trained.skipped, world.size
        folder.save_result(result)
    print_result(result, found)
    return result


def _own_device(device: torch.device, world: World) -> torch.device:
    return torch.device("cuda", world.local_rank) if device.type == "cuda" else device


def _open_folder(config: Config, folder: RunFolder | None, world: World) -> RunFolder:
    """Return the run folder, made by the first process."""
    if folder is None and world.is_first:
        folder = RunFolder.create(config)
    path = world.of_first(folder.path if folder else None)
    return folder if world.is_first else WatchedFolder(path)


def _run(
    config: Config,
    data: DataSet,
    phases: list[Phase],
    folder: RunFolder,
    device: torch.device,
    teacher: Teacher | None,
    world: World,
) -> Trained:
    if config.parallel == "members":

        def alone(phases: Sequence[Phase], folder: RunFolder) -> Trainer:
            return Trainer(config, phases, data, folder, device, teacher)

        return train_members(alone, phases, folder, world)
    trainer = Trainer(config, phases, data, folder, device, teacher, world)
    restore(trainer)
    trainer.run()
    seconds, skipped = trainer.progress.train_seconds, trainer.guard.skipped()
    return Trained(trainer.densities, seconds, skipped)


def dry_run(config: Config) -> None:
    """Print what a run would cost, layer by layer, and the JSON line; nothing is written.

    Budgets of time are measured all the same, and the times kept for the run.
    """
    device = choose_device(config)
    if config.data_dir and not config.download and not Path(config.data_dir).is_dir():
        raise InputError(f"data folder '{config.data_dir}' does not exist")
    info = dataset_info(config.dataset, config.data_dir)
    config = settled(config, info, device)
    train_size = info.train_size
    if config.select == "validation":
        train_size -= round(config.validation * train_size)
    phases = plan_phases(config, train_size)
    costs = run_costs(config, info, phases)
    load_teacher(config, info, device)
    rows = [("layer", "block", "shape", "density", "weights", "stored bytes", "MFLOPs")]
    for plan in costs["plans"]:
        block = "dense" if plan.is_dense else "x".join(map(str, plan.block))
        stored = plan.weights if plan.is_dense else plan.stored
        flops = costs["layer_flops"][plan.name] * plan.density
        shape = "x".join(map(str, plan.shape))
        weights = round(plan.density * plan.weights)
        counts = (f"{plan.density:.4f}", f"{weights}", f"{4 * stored}", f"{flops / 1e6:.2f}")
        rows.append((plan.name, block, shape, *counts))
    print(format_table(rows))
    print("\n" + format_table(_phase_rows(config, phases)))
    print_json(describe(config, device, costs, None, None))


def plan_phases(config: Config, train_size: int) -> list[Phase]:
    """Return the phases of a run over a training split of `train_size` images."""
    steps = count_steps(train_size, config.batch_size) * config.epochs
    return build_phases(config, steps, warmup_share(config))


def training_images(config: Config, data: DataSet) -> int:
    """Return how many images are trained on, after the validation split."""
    if config.select == "validation":
        return len(split_validation(data.train, config.validation, config.seed)[0])
    return len(data.train)


def choose_device(config: Config) -> torch.device:
    """Return the device of a run, after checking that it and the backend are there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' is not available on this machine; use --device cpu")
    has_gpu = torch.cuda.is_available() and config.device != "cpu"
    if config.cuda_graph == "on" and not has_gpu:
        raise InputError("--cuda-graph on needs a CUDA GPU, found none; leave it out")
    device = torch.device("cuda" if has_gpu else "cpu")
    try:
        check_backend(config.backend, device)
    except BackendError as error:
        raise InputError(str(error)) from None
    if config.backend != "auto":
        os.environ[VARIABLE] = config.backend
    return device


def check_parallel(config: Config, size: int) -> None:
    """Raise InputError for settings that `size` processes cannot have."""
    if config.compile or config.cuda_graph == "on":
        flag = "--compile" if config.compile else "--cuda-graph on"
        raise InputError(f"{flag} is for one process, found {size}; leave it out")
    if config.parallel == "data" and config.batch_size % size:
        raise InputError(
            f"a batch of {config.batch_size} images cannot be shared by {size} processes equally; "
            f"use a multiple of {size} as --batch-size"
        )


def evaluate_members(
    config: Config, data: DataSet, folder: RunFolder, device: torch.device
) -> dict[str, Any]:
    """Return the test metrics of a run's tickets and of their ensemble."""
    members, labels = member_probabilities(config, data, folder, device)
    return ensemble_metrics(members, labels)


def member_probabilities(
    config: Config, data: DataSet, folder: RunFolder, device: torch.device
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return test probabilities [N, K] of each member of each ticket, and the labels [N]."""
    members, labels = [], torch.empty(0)
    for model in load_tickets(config, data.info, folder):
        for member in members_of(model.to(device=device, memory_format=torch.channels_last)):
            test = batches(data.test, data.info, 2 * config.batch_size, device, config.workers)
            probabilities, labels = predict(member, test, config.dtype)
            members.append(probabilities)
    return members, labels


def describe(
    config: Config,
    device: torch.device,
    costs: dict[str, Any],
    found: dict[str, Any] | None,
    seconds: float | None,
) -> dict[str, Any]:
    """Return the JSON object of a run; what was not measured is null."""
    gpu = device.type == "cuda"
    measured = found or {}
    return {
        "method": config.method,
        "dataset": config.dataset,
        "model": config.model,
        "sparsity": config.sparsity,
        "block": config.block,
        "distribution": config.distribution,
        "members": config.members,
        "epochs": config.epochs,
        "seed": config.seed,
        **{name: measured.get(name) for name in ("accuracy", "nll", "ece", "brier")},
        "member_accuracy": measured.get("member_accuracy"),
        "disagreement": measured.get("disagreement"),
        "kl": measured.get("kl"),
        **{
            name: costs[name]
            for name in (
                "train_flops",
                "train_flops_ratio",
                "test_flops_ratio",
                "parameters",
                "bytes",
            )
        },
        "train_seconds": seconds,
        "peak_memory_bytes": None if seconds is None else peak_memory(device),
        "device": torch.cuda.get_device_name(device) if gpu else "cpu",
        "dtype": config.dtype,
        "backend": _backends(config, device, costs),
    }


def _backends(config: Config, device: torch.device, costs: dict[str, Any]) -> str:
    """Return what the sparse layers run on, several joined by "+"; "dense" if there are none."""
    dtype = DTYPES[config.dtype]
    used = set()
    for plan in costs["plans"]:
        if not plan.is_dense:
            sizes = (*plan.shape, 1, 1)[:4] + plan.block
            pixels = costs["layer_flops"][plan.name] // (2 * plan.weights)
            positions = config.batch_size * pixels
            used.add(choose_backend(device, dtype, sizes, plan.density, positions))
    return "+".join(sorted(used)) or "dense"


def peak_memory(device: torch.device) -> int:
    """Return the peak bytes that tensors took on a GPU, or the process's peak on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def print_result(result: dict[str, Any], found: dict[str, Any]) -> None:
    """Print the table of tickets and ensemble, the costs in words, and the JSON line."""
    print("\n" + metrics_table(found))
    print(
        f"\nsparsity {result['sparsity']:.3g}; training {result['train_flops_ratio']:.2f} and "
        f"test {result['test_flops_ratio']:.2f} times one dense network's FLOPs; "
        f"{result['train_seconds']:.0f} s of training on {result['device']}"
    )
    print_json(result)


def print_json(result: dict[str, Any]) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(result), flush=True)


def _phase_rows(config: Config, phases: list[Phase]) -> list[tuple[str, ...]]:
    rows = [("phase", "", "steps", "epochs", "updates", "ticket")]
    total = sum(phase.steps for phase in phases)
    for phase in phases:
        schedule = phase.update_schedule()
        updates = schedule.updates_in(phase.steps) if schedule else 0
        epochs = f"{phase.steps / total * config.epochs:.1f}"
        ticket = "yes" if phase.tickets else "-"
        rows.append((phase.name, "", f"{phase.steps}", epochs, f"{updates}", ticket))
    return rows
