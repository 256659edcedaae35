"""Members of an ensemble that are trained apart, by one process each (--parallel members).

A member's run lies in RUN/member-K, with checkpoints of its own, so any number of processes can go
on with it. It equals the member's part of a run that trains all of them one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparse_engine.errors import InputError
from sparse_engine.methods.actions import StartMember
from sparse_engine.methods.phase import Phase
from sparse_engine.runs.files import load_file
from sparse_engine.runs.run_folder import RunFolder
from sparse_engine.training.costs import Densities
from sparse_engine.training.progress import Progress
from sparse_engine.training.state import restore

if TYPE_CHECKING:
    from collections.abc import Callable

    from sparse_engine.config.config import Config
    from sparse_engine.training.processes import DistributedContext
    from sparse_engine.training.trainer import Trainer


@dataclass(frozen=True)
class Trained:
    """What training left behind besides tickets: densities, seconds, and steps left out."""

    densities: Densities
    seconds: float = 0.0
    skipped: int = 0


def check_independent(config: Config, phases: Sequence[Phase]) -> None:
    """Raise InputError unless every phase begins with a fresh network."""
    fresh = all(any(isinstance(action, StartMember) for action in phase.begin) for phase in phases)
    if len(phases) < 2 or not fresh:
        raise InputError(
            f"--parallel members is for methods that train members apart, such as dst-ensemble; "
            f"'{config.method}' does not"
        )


def train_members(
    new_trainer: Callable[..., Trainer],
    phases: Sequence[Phase],
    folder: RunFolder,
    world: DistributedContext,
) -> Trained:
    """Train this process's members; in the first process then bring all results together.

    Args:
        new_trainer: makes the trainer of `phases` in a `folder`.
        phases: one for each member.
        folder: of the run.
        world: process r trains members r, r + size, ...

    Returns:
        What the whole run left; nothing in processes other than the first.
    """
    mine, steps = range(world.rank, len(phases), world.size), [phase.steps for phase in phases]
    for number in mine:
        with RunFolder.inside(folder, f"member-{number + 1}") as own:
            trainer = new_trainer(phases=[phases[number]], folder=own)
            trainer.begin_at(Progress(step=sum(steps[:number]), member=number - 1))
            trainer.steps_elsewhere = sum(steps) - steps[number]
            trainer.steps_afterwards = sum(steps[other] for other in mine if other > number)
            restore(trainer)
            trainer.run()
    world.gather(None)
    return _bring_together(folder, len(phases)) if world.is_first else Trained(Densities())


def _bring_together(folder: RunFolder, members: int) -> Trained:
    densities, seconds, skipped = Densities(), 0.0, 0
    folder.drop_rows_after(-1)
    info = folder.info()
    class_names = info.class_names if info else ()
    for number in range(1, members + 1):
        own = RunFolder(folder.path / f"member-{number}")
        state = load_file(own.last, "densities", "progress", "guard")
        folder.save_member(number, own.load_member(1), class_names)
        folder.add_rows_of(own)
        found = Densities()
        found.load_state_dict(state["densities"])
        for name, listed in found.state_dict().items():
            getattr(densities, name).extend(listed)
        seconds += state["progress"]["train_seconds"]
        skipped += int(state["guard"]["_skipped"])
    return Trained(densities, seconds, skipped)
