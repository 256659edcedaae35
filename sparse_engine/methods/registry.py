"""Methods by name. Imports no torch, so that a wrong name is told at once."""

from __future__ import annotations

from collections.abc import Callable

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError, nearest
from sparse_engine.methods import (
    deep_ensemble,
    dst_ensemble,
    edst,
    fge,
    kd_ticket,
    lottery,
    ltr,
    pf,
    single,
    snapshot,
    sup_tickets,
)
from sparse_engine.methods.baselines import SEVERAL_MEMBERS
from sparse_engine.methods.phase import Phase

METHODS: dict[str, Callable[[Config, int, float], list[Phase]]] = {
    "dense": single.phases,
    "static": single.phases,
    "set": single.phases,
    "rigl": single.phases,
    "snfs": single.phases,
    "granet": single.phases,
    "dst-ensemble": dst_ensemble.phases,
    "edst": edst.phases,
    "sup-tickets": sup_tickets.phases,
    "kd-ticket": kd_ticket.phases,
    "lottery": lottery.phases,
    "ltr": ltr.phases,
    "pf": pf.phases,
    "deep-ensemble": deep_ensemble.phases,
    "snapshot": snapshot.phases,
    "fge": fge.phases,
    "mc-dropout": single.phases,
    "batch-ensemble": single.phases,
    "mimo": single.phases,
    "treenet": single.phases,
}
# Methods that take --members; those that take --topology; those that start dense and prune.
ENSEMBLES = ("dst-ensemble", "edst", "lottery", "ltr", "pf", *SEVERAL_MEMBERS)
DYNAMIC = ("dst-ensemble", "edst", "sup-tickets")
PRUNING = ("kd-ticket", "lottery", "ltr", "pf")
# Length in single runs, where it is not one; EDST's has a recipe of its own.
RUN_COUNTS: dict[str, Callable[[Config], float]] = {
    "dst-ensemble": lambda config: config.members or 1,
    "lottery": lottery.run_count,
    "ltr": ltr.run_count,
    "pf": pf.run_count,
    "deep-ensemble": deep_ensemble.run_count,
}


def check_method(name: str) -> None:
    """Raise InputError, with the nearest name, for a method that does not exist."""
    if name not in METHODS:
        raise InputError(
            f"unknown method '{name}'{nearest(name, METHODS)}; choose from {', '.join(METHODS)}"
        )


def build_phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return the phases of a resolved configuration.

    Args:
        config: after recipes.resolve.
        steps: optimizer steps of the whole run.
        warmup: share of the run over which the learning rate rises.

    Raises:
        InputError: a phase without steps, or a dynamic phase too short for a single update.
    """
    found = METHODS[config.method](config, steps, warmup)
    for phase in found:
        schedule = phase.update_schedule()
        if schedule and not schedule.updates_in(phase.steps):
            raise InputError(
                f"phase '{phase.name}' of {phase.steps} steps is too short for a topology update "
                f"every {schedule.interval}; use more epochs or a smaller --update-interval"
            )
    return found
