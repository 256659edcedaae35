"""Methods by name. Imports no torch, so that a wrong name is told at once."""

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError, nearest
from sparse_engine.methods import (
    baselines,
    cyclic,
    edst,
    independent,
    kd_ticket,
    lottery,
    pf,
    single,
    sup_tickets,
)
from sparse_engine.methods.method import Method
from sparse_engine.methods.phase import Phase

METHODS: dict[str, Method] = {
    "dense": Method(single.phases, rule="dense", usual_sparsity=0.0),
    "static": Method(single.phases),
    **{rule: Method(single.phases, rule=rule) for rule in single.UPDATES},
    "dst-ensemble": independent.DST_ENSEMBLE,
    "edst": edst.METHOD,
    "sup-tickets": sup_tickets.METHOD,
    "kd-ticket": kd_ticket.METHOD,
    "lottery": lottery.LOTTERY,
    "ltr": lottery.LTR,
    "pf": pf.METHOD,
    "deep-ensemble": independent.DEEP_ENSEMBLE,
    "snapshot": cyclic.SNAPSHOT,
    "fge": cyclic.FGE,
    "mc-dropout": baselines.MC_DROPOUT,
    "batch-ensemble": baselines.BATCH_ENSEMBLE,
    "mimo": baselines.MIMO,
    "treenet": baselines.TREENET,
}


def method_named(name: str) -> Method:
    """Return a method.

    Raises:
        InputError: there is none of that name; with the nearest one.
    """
    if name not in METHODS:
        raise InputError(
            f"unknown method '{name}'{nearest(name, METHODS)}; choose from {', '.join(METHODS)}"
        )
    return METHODS[name]


def build_phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return the phases of a resolved configuration.

    Args:
        config: as resolve.resolve returns it.
        steps: optimizer steps of the whole run.
        warmup: share of the run over which the learning rate rises.

    Raises:
        InputError: a phase without steps, or a dynamic phase too short for a single update.
    """
    phases = METHODS[config.method].phases(config, steps, warmup)
    for phase in phases:
        schedule = phase.update_schedule()
        if schedule and not schedule.updates_in(phase.steps):
            raise InputError(
                f"phase '{phase.name}' of {phase.steps} steps is too short for a topology update "
                f"every {schedule.interval}; use more epochs or a smaller --update-interval"
            )
    return phases
