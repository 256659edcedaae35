"""What a run would cost, layer by layer and phase by phase; nothing is trained or written."""

from dataclasses import replace

import torch

from sparse_engine.config.config import Config
from sparse_engine.data.arrays import DataSet
from sparse_engine.data.catalog import DatasetInfo, is_known
from sparse_engine.data.load import dataset_info
from sparse_engine.device import choose_device, on_backend
from sparse_engine.errors import InputError
from sparse_engine.methods.phase import Phase
from sparse_engine.runs.teacher import load_teacher
from sparse_engine.tables import format_table
from sparse_engine.training.costs import run_costs
from sparse_engine.training.result import (
    backend_shares,
    backends_in_words,
    costs_in_words,
    describe,
    print_json,
)
from sparse_engine.training.run import check_permutable, load_run_data, plan_phases, print_notes
from sparse_engine.training.times.budget import resolve_budget


def dry_run(config: Config) -> None:
    """Print what a run would cost, layer by layer, and the JSON line; nothing is written.

    Budgets of time are measured all the same, and the times kept for the run.
    """
    with on_backend(config):
        _dry_run(config, choose_device(config))


def _dry_run(config: Config, device: torch.device) -> None:
    data = stored_data(config)
    info = dataset_info(config.dataset, None, config.preparation) if data is None else data.info
    config = resolve_budget(config, info, device)
    train_size = training_images(config, info)
    check_permutable(config, info)
    phases = plan_phases(config, train_size)
    costs = run_costs(config, info, phases)
    load_teacher(config, info, device)
    print_notes(config, data, costs["plans"])
    rows = [("layer", "block", "shape", "density", "weights", "stored bytes", "MFLOPs")]
    for plan in costs["plans"]:
        block = "dense" if plan.is_dense else "x".join(map(str, plan.block))
        flops = costs["layer_flops"][plan.name] * plan.density
        shape = "x".join(map(str, plan.shape))
        counts = (
            f"{plan.density:.4f}",
            f"{plan.active_weights}",
            f"{plan.stored_bytes}",
            f"{flops / 1e6:.2f}",
        )
        rows.append((plan.name, block, shape, *counts))
    print(format_table(rows))
    result = describe(config, device, costs)
    print("\n" + backends_in_words(backend_shares(config, device, costs)))
    print(costs_in_words(result))
    print("\n" + _data_in_words(info, train_size, config.batch_size, data is not None))
    print("\n" + format_table(_phase_rows(config, phases)))
    counts = {
        "train_images": train_size,
        "test_images": info.test_size,
        "classes": info.classes,
        "steps_per_epoch": train_size // config.batch_size,
    }
    print_json({**result, **counts})


def training_images(config: Config, info: DatasetInfo) -> int:
    """Return how many images a run trains on: those that validation holds out are none of them."""
    held_out = config.validation if config.select == "validation" else 0.0
    return info.train_size - round(held_out * info.train_size)


def stored_data(config: Config) -> DataSet | None:
    """Return a run's data; None where its files were not named, or would be fetched first.

    Raises:
        InputError: what is there cannot be used.
    """
    if is_known(config.dataset) and config.dataset != "digits":
        if config.data_dir is None:
            return None
        if config.download:
            try:
                return load_run_data(replace(config, download=False))
            except InputError:
                return None
    return load_run_data(config)


def _data_in_words(info: DatasetInfo, train_size: int, batch_size: int, counted: bool) -> str:
    held_out = info.train_size - train_size
    parts = [f"{train_size} training images" + (f" ({held_out} held out)" if held_out else "")]
    parts += [f"{info.test_size} test images", f"{info.classes} classes"]
    parts += [f"{info.channels}x{info.height}x{info.width}"]
    source = "counted" if counted else "as published, nothing was read"
    steps = f"{train_size // batch_size} steps of {batch_size} an epoch"
    return f"data: {', '.join(parts)} ({source}); {steps}"


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
