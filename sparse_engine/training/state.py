"""What a run is at one of its steps, as its checkpoint holds it, and a run continued from that.

Each part is declared, checked and read by its owner, in the owner's file: by state_dict(),
check_state(state), which raises InputError unless it can be loaded, and load_state_dict(state).
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_engine.config.config import FIELDS, MOVABLE
from sparse_engine.config.values import as_trained, present_names
from sparse_engine.errors import InputError
from sparse_engine.layers.state_dict import check_model
from sparse_engine.runs.files import load_file
from sparse_engine.runs.run_folder import RunFolder
from sparse_engine.schema import check_like, check_settings, demand
from sparse_engine.training.network import member_seed
from sparse_engine.training.progress import Progress
from sparse_engine.training.training_run import TrainingRun


class RandomState:
    """The random numbers of the CPU, which dropout draws: all else is of seed and step."""

    def state_dict(self) -> Tensor:
        """Return where they are."""
        return torch.get_rng_state()

    def check_state(self, state: Any) -> None:
        """Raise InputError unless a state is as long as one."""
        check_like(state, torch.get_rng_state(), "random_state")

    def load_state_dict(self, state: Tensor) -> None:
        """Go on from there; RuntimeError if it is no state."""
        torch.set_rng_state(state)


class DeviceRandomState:
    """The random numbers of a GPU; of another device none."""

    def __init__(self, device: torch.device) -> None:
        """Be those of a device."""
        self._device = device

    def state_dict(self) -> Tensor | None:
        """Return where they are."""
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None

    def check_state(self, state: Any) -> None:
        """Raise InputError unless a state is bytes, or None as of a run on a CPU."""
        fits = isinstance(state, Tensor) and state.dtype == torch.uint8
        demand(state is None or fits, "device_random_state", "bytes or nothing", state)

    def load_state_dict(self, state: Tensor | None) -> None:
        """Go on from there, if state and device are of a GPU; RuntimeError if it is no state."""
        if state is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)


def _densities(run: TrainingRun) -> tuple[Any, ...]:
    begun = len(run.network.members) * run.progress.phases_begun
    return run.densities, begun, run.progress.tickets


# By the name that a part has in a file: its owner, and what the owner's check is told besides.
# They are loaded in this order, and a check may be told what was loaded before.
PARTS: dict[str, Callable[[TrainingRun], tuple[Any, ...]]] = {
    "model": lambda run: (run.network,),
    "optimizer": lambda run: (run.network.momenta,),
    "topology": lambda run: (run.network.topology,),
    "guard": lambda run: (run.guard,),
    "best": lambda run: (run.best, run.network.members),
    "kept": lambda run: (run.kept, run.network.members[0], run.progress.kept(run.phases)),
    "accuracy": lambda run: (run.accuracies,),
    "densities": _densities,
    "first_blocks": lambda run: (run.first_blocks, run.topology.layers),
    "random_state": lambda run: (RandomState(),),
    "device_random_state": lambda run: (DeviceRandomState(run.device),),
}


def state_of(run: TrainingRun) -> dict[str, Any]:
    """Return everything the rest of a run depends on: tensors and plain containers."""
    state = {"config": run.config.saved(), "progress": run.progress.state_dict()}
    return state | {name: part(run)[0].state_dict() for name, part in PARTS.items()}


def restore(run: TrainingRun) -> None:
    """Continue from the folder's checkpoint, if there is one.

    Raises:
        InputError: it cannot be read, or is of another configuration, other data or another place.
    """
    state = _load(run.folder)
    if state is None:
        run.folder.drop_rows_after(-1)
        return
    _check_configuration(run, state["config"])
    try:
        _continue(run, state)
    # RuntimeError: what torch says of states and random states that do not fit.
    except (InputError, RuntimeError) as error:
        raise InputError(f"checkpoint '{run.folder.last}' does not fit the data: {error}") from None
    run.folder.drop_rows_after(run.progress.step)


def _continue(run: TrainingRun, state: dict[str, Any]) -> None:
    """Become what a checkpoint says; InputError or RuntimeError if it is not of this run."""
    run.progress.check_state(state["progress"], run.phases)
    run.begin_at(Progress(**state["progress"]))
    run.start_member(run.progress.member)
    _check_tickets(run)
    for name, part in PARTS.items():
        owner, *told = part(run)
        owner.check_state(state[name], *told)
        owner.load_state_dict(state[name])
    if not run.world.is_first:
        # The file has the random numbers of the first process.
        torch.manual_seed(member_seed(run.progress.step, run.world.rank))


def _check_tickets(run: TrainingRun) -> None:
    """Look at the tickets saved so far: they are needed in the end, hours later."""
    for number in range(1, run.progress.tickets + 1):
        model = run.folder.load_member(number)
        check_model(run.network.members[0], model, f"ticket {number}")


def _load(folder: RunFolder) -> dict[str, Any] | None:
    """Return the newest checkpoint that can be read, None if none was written."""
    if not folder.last.exists() and not folder.previous.exists():
        return None
    try:
        return _read(folder.last)
    except InputError as error:
        if not folder.previous.exists():
            raise
        state = _read(folder.previous)
        step = state["progress"]["step"]
        print(f"{error}; continuing from the one before, of step {step}", file=sys.stderr)
        return state


def _read(path: Path) -> dict[str, Any]:
    state = load_file(path, "progress", "config", *(PARTS.keys() - {"first_blocks"}))
    state.setdefault("first_blocks", None)  # as earlier versions wrote it
    check_like(state["progress"], Progress().state_dict(), f"checkpoint '{path}': progress")
    return {**state, **{name: _listed(state[name]) for name in ("accuracy", "best")}}


def _listed(of_members: Any) -> list[Any]:
    """Return a list of one for each member, where older checkpoints have the one by itself."""
    if isinstance(of_members, list):
        return of_members
    return [] if of_members is None else [of_members]


def _check_configuration(run: TrainingRun, saved: Any) -> None:
    check_settings(saved)
    saved = as_trained(present_names(saved, "checkpoint"))
    for name, value in run.config.saved().items():
        # Other settings that are younger than the checkpoint had their defaults.
        earlier = saved.get(name, FIELDS[name].default)
        if name not in MOVABLE and value != earlier:
            raise InputError(
                f"checkpoint '{run.folder.last}' was trained with {name} {earlier}, "
                f"found {value}: a resumed run keeps its configuration; start a new one"
            )
