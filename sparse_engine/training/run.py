"""A training run from its configuration to its last line of output."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from sparse_engine.config.config import Config
from sparse_engine.data.arrays import DataSet
from sparse_engine.data.catalog import DatasetInfo, first_difference
from sparse_engine.data.load import load_dataset
from sparse_engine.data.loader import count_steps
from sparse_engine.data.notes import epoch_note
from sparse_engine.data.splits import choosing_split
from sparse_engine.device import choose_device, on_backend, repeatable
from sparse_engine.errors import InputError
from sparse_engine.evaluation.predict import ensemble_metrics, member_log_probabilities
from sparse_engine.layers.few_blocks import few_blocks_note
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.methods.independent import as_one, is_grouped
from sparse_engine.methods.phase import Phase
from sparse_engine.methods.registry import build_phases
from sparse_engine.methods.resolve import warmup_share
from sparse_engine.runs.model import dense_model
from sparse_engine.runs.run_folder import RunFolder, WatchedFolder
from sparse_engine.runs.teacher import Teacher, load_teacher
from sparse_engine.runs.tickets import run_tickets
from sparse_engine.sparsity.channel_permutation.groups import channel_groups
from sparse_engine.training.costs import run_costs
from sparse_engine.training.epoch_log import check_log
from sparse_engine.training.grouped import start_group
from sparse_engine.training.member_processes import Trained, check_independent, train_members
from sparse_engine.training.processes import DistributedContext, process_group
from sparse_engine.training.result import backend_shares, backends_in_words, describe, print_result
from sparse_engine.training.state import restore
from sparse_engine.training.times.budget import resolve_budget
from sparse_engine.training.times.step_times import is_comparable, step_times
from sparse_engine.training.times.tuning import tune_run
from sparse_engine.training.trainer import Trainer
from sparse_kernels.dispatch.backend import BackendError
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
    with ExitStack() as stack:
        stack.enter_context(repeatable(config.deterministic))
        stack.enter_context(on_backend(config))
        device = choose_device(config)
        check_device(config, device)
        check_log(config.log)
        world = stack.enter_context(process_group(config.timeout, device.type == "cuda"))
        check_parallel(config, world.size)
        if world.size > 1 and device.type == "cuda":
            device = torch.device("cuda", world.local_rank)
        with world.first_before_others():
            data = load_run_data(config)
        # Measured times decide: one process's for all.
        config = world.from_first(partial(resolve_budget, config, data.info, device))
        phases, teacher = _plan(config, data, device)
        costs = run_costs(config, data.info, phases)
        if config.tune and folder is None:
            if world.is_first:
                print(f"tuned {tune_run(config, data.info, device)}")
            world.gather(None)
        folder = stack.enter_context(_open_folder(config, folder, world, data.info))
        _take_the_same_kernels(folder, device, world, stack)
        if world.is_first:
            print_notes(config, data, costs["plans"])
            print(f"{config.method} on {config.dataset}, {config.model}, run folder {folder.path}")
            print(settings_in_words(config))
            print(backends_in_words(backend_shares(config, device, costs)))
        trainer = partial(Trainer, config, data=data, device=device, teacher=teacher)
        trained = _train(trainer, config, phases, folder, world)
        if not world.is_first:
            return None
        tickets = run_tickets(folder, config, data.info)
        metrics = ensemble_metrics(*member_log_probabilities(tickets, data.test, device))
        costs = run_costs(config, data.info, phases, trained.densities)
        result = describe(config, device, costs, metrics, trained.seconds)
        result |= {"skipped_steps": trained.skipped, "processes": world.size}
        folder.save_result(result)
        if is_comparable(config, world.size):
            # Last, so that what goes wrong here loses nothing.
            try:
                times = step_times(config, data.info, device, phases, trained.densities, teacher)
                result |= times.result(config)
                folder.save_result(result)
            except torch.OutOfMemoryError:
                print("warning: no memory for a dense step beside the run's own", file=sys.stderr)
        print_result(result, metrics)
        return result


def _plan(
    config: Config, data: DataSet, device: torch.device
) -> tuple[list[Phase], Teacher | None]:
    """Return the phases of a run, and its teacher; InputError if it cannot be trained so."""
    check_permutable(config, data.info)
    split, *_ = choosing_split(data, config.select, config.validation, config.seed)
    phases = plan_phases(config, len(split))
    teacher = load_teacher(config, data.info, device)
    if config.parallel == "members":
        check_independent(config, phases)
    if is_grouped(config):
        try:  # which alone tells for sure
            start_group(config, split, data.info, device, phases[0].steps)
        except InputError as error:
            raise InputError(f"--parallel grouped: {error}, without that flag") from None
    return phases, teacher


def _open_folder(
    config: Config, folder: RunFolder | None, world: DistributedContext, info: DatasetInfo
) -> RunFolder:
    """Return the run folder, made by the first process; InputError if its data has changed."""
    if folder is None and world.is_first:
        folder = RunFolder.create(config)
        folder.save_info(info)
    elif world.is_first:
        _check_same_data(folder, info)
    path = world.from_first(lambda: folder.path)
    return folder if world.is_first else WatchedFolder(path)


def _check_same_data(folder: RunFolder, info: DatasetInfo) -> None:
    kept = folder.info()
    difference = kept and first_difference(kept, info)
    if difference:
        words, before, now = difference
        raise InputError(
            f"the data of run '{folder.path}' has changed since it began: {words} was {before}, "
            f"and is {now}; give it the same data, or start a new run"
        )


def _take_the_same_kernels(
    folder: RunFolder, device: torch.device, world: DistributedContext, stack: ExitStack
) -> None:
    """Let every process, now and when the run is continued, take the kernels of its first start."""
    choices = folder.kernel_choices() if world.is_first else None
    if choices is None and world.is_first:
        choices = kernel_choices(device)
        folder.save_kernel_choices(choices)
    try:
        stack.enter_context(with_kernel_choices(device, world.from_first(lambda: choices)))
    except BackendError as error:
        raise InputError(f"run '{folder.path}': {error}") from None
    except (TypeError, ValueError, AttributeError):
        raise InputError(
            f"'{folder.kernels}' is damaged; delete it, and the run takes the kernels "
            "that this machine would choose today"
        ) from None


def _train(
    new_trainer: Callable[..., Trainer],
    config: Config,
    phases: list[Phase],
    folder: RunFolder,
    world: DistributedContext,
) -> Trained:
    if config.parallel == "members":
        return train_members(new_trainer, phases, folder, world)
    if is_grouped(config):
        phases = [as_one(phases)]
    trainer = new_trainer(phases=phases, folder=folder, world=world)
    restore(trainer)
    trainer.run()
    seconds, skipped = trainer.progress.train_seconds, trainer.guard.skipped()
    return Trained(trainer.densities, seconds, skipped)


def settings_in_words(config: Config) -> str:
    """Return a line with every setting that a run has decided."""
    decided = {name: value for name, value in config.saved().items() if value is not None}
    return "settings: " + ", ".join(f"{name} {value}" for name, value in decided.items())


def load_run_data(config: Config) -> DataSet:
    """Return the data set of a run; InputError if it cannot be read, or has one class."""
    data = load_dataset(config.dataset, config.data_dir, config.download, config.preparation)
    if data.info.classes < 2:
        raise InputError(f"{config.dataset} has one class; training needs two or more")
    return data


def print_notes(config: Config, data: DataSet | None, plans: Sequence[LayerPlan]) -> None:
    """Print a line on stderr for each thing that is perhaps not as it is meant.

    Args:
        config: resolved.
        data: of the run, if there is any yet.
        plans: the layers of its last ticket.
    """
    notes = [few_blocks_note(plans)]
    if data is not None:
        split, *_ = choosing_split(data, config.select, config.validation, config.seed)
        notes += [*data.notes, epoch_note(len(split), config.batch_size)]
    for note in filter(None, notes):
        print(f"warning: {note}", file=sys.stderr)


def plan_phases(config: Config, train_size: int) -> list[Phase]:
    """Return the phases of a run over a training split of `train_size` images."""
    steps = count_steps(train_size, config.batch_size) * config.epochs
    return build_phases(config, steps, warmup_share(config))


def check_permutable(config: Config, info: DatasetInfo) -> None:
    """Raise InputError for a model whose channels are all in a fixed order."""
    if config.permute_channels:
        with torch.device("meta"):
            model = dense_model(config, info)
        if not channel_groups(model):
            raise InputError(
                f"--permute-channels: the order of all channels of {config.model} is fixed; "
                "leave it out"
            )


def check_device(config: Config, device: torch.device) -> None:
    """Raise InputError for settings that a device cannot have."""
    if config.sync_batch_norm and device.type != "cuda":
        raise InputError(
            "--sync-batch-norm runs on GPUs alone, and this run is on a CPU: leave it out, or use "
            "--device cuda; a run that was started with it can be resumed on a GPU"
        )


def check_parallel(config: Config, size: int) -> None:
    """Raise InputError for settings that `size` processes cannot have."""
    if size == 1:
        return
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
