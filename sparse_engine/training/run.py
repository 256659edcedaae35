"""A training run from its configuration to its last line of output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from sparse_engine.config.config import Config
from sparse_engine.data.arrays import DataSet
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.data.load import load_dataset
from sparse_engine.data.loader import count_steps
from sparse_engine.device import choose_device, on_backend, repeatable
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.evaluation.predict import (
    batches,
    choosing_split,
    ensemble_metrics,
    predict,
)
from sparse_engine.methods.grouped_run import as_one, is_grouped
from sparse_engine.methods.phase import Phase
from sparse_engine.methods.registry import build_phases
from sparse_engine.methods.resolve import warmup_share
from sparse_engine.models.members import members_of
from sparse_engine.runs.model import dense_model
from sparse_engine.runs.run_folder import RunFolder, WatchedFolder
from sparse_engine.runs.teacher import Teacher, load_teacher
from sparse_engine.runs.tickets import load_tickets
from sparse_engine.sparsity.channel_permutation.groups import channel_groups
from sparse_engine.training.budget import settled
from sparse_engine.training.costs import run_costs
from sparse_engine.training.grouped import start_group
from sparse_engine.training.member_processes import Trained, check_independent, train_members
from sparse_engine.training.processes import World, joined
from sparse_engine.training.result import backend_shares, backends_in_words, describe, print_result
from sparse_engine.training.state import restore
from sparse_engine.training.trainer import Trainer
from sparse_engine.training.tuning import tune_run
from sparse_kernels.dispatch.kernel_choices import kernel_choices, with_kernel_choices


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
    with repeatable(config.deterministic), on_backend(config):
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
    check_regroup(config, data.info)
    phases = plan_phases(config, training_images(config, data))
    costs = run_costs(config, data.info, phases)
    teacher = load_teacher(config, data.info, device)
    if config.parallel == "members":
        check_independent(config, phases)
    if is_grouped(config):
        _check_group(config, data, device, phases)
    if config.tune and folder is None:
        if world.is_first:
            print(f"tuned {tune_run(config, data.info, device)}")
        world.gather(None)
    with _open_folder(config, folder, world) as folder, _same_kernels(folder, device, world):
        if world.is_first:
            print(f"{config.method} on {config.dataset}, {config.model}, run folder {folder.path}")
            print(backends_in_words(backend_shares(config, device, costs)))
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


def _check_group(
    config: Config, data: DataSet, device: torch.device, phases: Sequence[Phase]
) -> None:
    """Raise InputError if members cannot train as one, which only trying tells for sure."""
    train, *_ = choosing_split(data, config.select, config.validation, config.seed)
    try:
        start_group(config, train, data.info, device, phases[0].steps)
    except InputError as error:
        raise InputError(f"--parallel grouped: {error}, without that flag") from None


def _own_device(device: torch.device, world: World) -> torch.device:
    return torch.device("cuda", world.local_rank) if device.type == "cuda" else device


def _open_folder(config: Config, folder: RunFolder | None, world: World) -> RunFolder:
    """Return the run folder, made by the first process."""
    if folder is None and world.is_first:
        folder = RunFolder.create(config)
    path = world.of_first(folder.path if folder else None)
    return folder if world.is_first else WatchedFolder(path)


@contextmanager
def _same_kernels(folder: RunFolder, device: torch.device, world: World) -> Iterator[None]:
    """Let every process, now and when the run is continued, take the kernels of its first start."""
    choices = folder.kernel_choices() if world.is_first else None
    if choices is None and world.is_first:
        choices = kernel_choices(device)
        folder.save_kernel_choices(choices)
    with ExitStack() as stack:
        try:
            stack.enter_context(with_kernel_choices(device, world.of_first(choices)))
        except (TypeError, ValueError, AttributeError):
            raise InputError(
                f"'{folder.kernels}' is damaged; delete it, and the run takes the kernels "
                "that this machine would choose today"
            ) from None
        yield


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
    if is_grouped(config):
        phases = [as_one(phases)]
    trainer = Trainer(config, phases, data, folder, device, teacher, world)
    restore(trainer)
    trainer.run()
    seconds, skipped = trainer.progress.train_seconds, trainer.guard.skipped()
    return Trained(trainer.densities, seconds, skipped)


def plan_phases(config: Config, train_size: int) -> list[Phase]:
    """Return the phases of a run over a training split of `train_size` images."""
    steps = count_steps(train_size, config.batch_size) * config.epochs
    return build_phases(config, steps, warmup_share(config))


def training_images(config: Config, data: DataSet) -> int:
    """Return how many images are trained on, after the validation split."""
    train, *_ = choosing_split(data, config.select, config.validation, config.seed)
    return len(train)


def check_regroup(config: Config, info: DatasetInfo) -> None:
    """Raise InputError for a model whose channels --regroup cannot follow."""
    if config.regroup:
        with torch.device("meta"):
            model = dense_model(config, info)
        if not channel_groups(model):
            raise InputError(
                f"--regroup: the order of all channels of {config.model} is fixed; leave it out"
            )


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
    if is_grouped(config):
        raise InputError(
            f"--parallel grouped is for one process, found {size}; --parallel members gives each "
            "process whole members"
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
            if not bool(probabilities.isfinite().all()):
                raise RunFailure(
                    f"predictions of a ticket of run '{folder.path}' are not finite: restore its "
                    "file, or train it again"
                )
            members.append(probabilities)
    return members, labels
