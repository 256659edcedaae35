"""What a run would cost, layer by layer and phase by phase; nothing is trained or written."""

from pathlib import Path

import torch

from sparse_engine.config.config import Config
from sparse_engine.data.load import dataset_info
from sparse_engine.device import choose_device, on_backend
from sparse_engine.errors import InputError
from sparse_engine.methods.phase import Phase
from sparse_engine.runs.teacher import load_teacher
from sparse_engine.tables import format_table
from sparse_engine.training.budget import resolve_budget
from sparse_engine.training.costs import run_costs
from sparse_engine.training.result import (
    backend_shares,
    backends_in_words,
    costs_in_words,
    describe,
    print_json,
)
from sparse_engine.training.run import check_permutable, plan_phases


def dry_run(config: Config) -> None:
    """Print what a run would cost, layer by layer, and the JSON line; nothing is written.

    Budgets of time are measured all the same, and the times kept for the run.
    """
    with on_backend(config):
        _dry_run(config, choose_device(config))


def _dry_run(config: Config, device: torch.device) -> None:
    if config.data_dir and not config.download and not Path(config.data_dir).is_dir():
        raise InputError(f"data folder '{config.data_dir}' does not exist")
    info = dataset_info(config.dataset, config.data_dir)
    config = resolve_budget(config, info, device)
    train_size = info.train_size
    if config.select == "validation":
        train_size -= round(config.validation * train_size)
    check_permutable(config, info)
    phases = plan_phases(config, train_size)
    costs = run_costs(config, info, phases)
    load_teacher(config, info, device)
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
    print("\n" + format_table(_phase_rows(config, phases)))
    print_json(result)


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
