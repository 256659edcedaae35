"""Members of an ensemble that train as one network in one process (--parallel grouped).

What that asks of a configuration, and the phase in which they do. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.methods.actions import SaveTicket
from sparse_engine.methods.phase import Phase

METHODS = ("dst-ensemble", "deep-ensemble")


def is_grouped(config: Config) -> bool:
    """Return whether a run's members train as one network."""
    return config.parallel == "grouped"


def check_grouped(config: Config) -> None:
    """Raise InputError for settings of a resolved configuration that grouped members cannot have.

    Epochs are shared out whole, so that every member sees what it would see alone.
    """
    if not is_grouped(config):
        return
    flag, members, epochs = "--parallel grouped", config.members or 1, config.epochs or 1
    if config.method not in METHODS:
        raise InputError(
            f"{flag} is for members that do not depend on each other, of {' or '.join(METHODS)}; "
            f"those of '{config.method}' do, or it has none"
        )
    if members < 2:
        raise InputError(f"{flag} needs two members or more, found --members {members}")
    if config.topology == "snfs":
        raise InputError(
            f"{flag} keeps each layer's number of blocks, and --topology snfs moves them between "
            "layers; use static, set, rigl or granet"
        )
    if config.fuse == "on":
        raise InputError(f"{flag} and --fuse on exclude each other; leave --fuse out")
    if epochs % members:
        below = epochs - epochs % members
        choices = f"{below} or {below + members}" if below else f"{members}"
        raise InputError(
            f"{flag} gives every member the same number of epochs, and {epochs} are no multiple of "
            f"{members}; use --epochs {choices}"
        )


def as_one(phases: Sequence[Phase]) -> Phase:
    """Return the phase in which members train that would have a phase each."""
    count = len(phases)
    return replace(phases[0], name=f"members 1 to {count}", end=(SaveTicket(members=count),))
