"""What a run is at one of its steps, as its checkpoint holds it, and a run continued from that."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparse_engine.checkpoint import load_file
from sparse_engine.checkpoint_check import check_progress, check_rest
from sparse_engine.config import FIELDS, MOVABLE
from sparse_engine.costs import Densities
from sparse_engine.errors import InputError
from sparse_engine.network import member_seed
from sparse_engine.schema import check_like, check_settings
from sparse_engine.state_dict import check_model

if TYPE_CHECKING:
    from sparse_engine.run_folder import RunFolder
    from sparse_engine.trainer import Trainer

KEYS = (
    "progress",
    "config",
    "kept",
    "model",
    "optimizer",
    "topology",
    "guard",
    "best",
    "accuracy",
    "densities",
    "random_state",
    "device_random_state",
)


@dataclass
class Progress:
    """Where a run is.

    step: of the whole run; phase_step: of the phase; begun: whether the phase's first actions
    are done; tickets: saved so far.
    """

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    begun: bool = False
    member: int = -1
    tickets: int = 0
    train_seconds: float = 0.0


def state_of(run: Trainer) -> dict[str, Any]:
    """Return everything the rest of a run depends on: tensors and plain containers.

    Data order and topology updates are functions of seed and step, so no other random state than
    PyTorch's is needed.
    """
    on_gpu = run.device.type == "cuda"
    return {
        "config": run.config.saved(),
        "progress": asdict(run.progress),
        "model": run.network.stored.state_dict(),
        "optimizer": run.network.optimizer.state_dict(),
        "topology": run.network.topology.state_dict(),
        "guard": run.guard.state_dict(),
        "best": run.best,
        "kept": run.kept,
        "accuracy": run.accuracies,
        "densities": asdict(run.densities),
        "random_state": torch.get_rng_state(),
        "device_random_state": torch.cuda.get_rng_state(run.device) if on_gpu else None,
    }


def copy_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict whose tensors are no longer the model's."""
    return {name: value.detach().clone() for name, value in state.items()}


def restore(run: Trainer) -> None:
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


def _continue(run: Trainer, state: dict[str, Any]) -> None:
    """Become what a checkpoint says; InputError or RuntimeError if it is not of this run."""
    check_progress(state["progress"], run.progress, run.phases)
    run.progress = Progress(**state["progress"])
    run.start_member(run.progress.member)
    network = run.network
    check_model(network.stored, state["model"])
    # They are needed in the end: better told now than after hours.
    for number in range(1, run.progress.tickets + 1):
        check_model(network.members[0], run.folder.load_member(number), f"ticket {number}")
    network.load(state["model"])
    check_rest(state, run)
    network.load_momenta(state["optimizer"]["state"])
    network.topology.load_state_dict(state["topology"])
    run.guard.load_state_dict(state["guard"])
    run.best, run.kept = state["best"], state["kept"]
    run.accuracies = state["accuracy"]
    run.densities = Densities(**state["densities"])
    if not run.world.is_first:
        torch.manual_seed(member_seed(run.progress.step, run.world.rank))
        return
    torch.set_rng_state(state["random_state"])
    if state["device_random_state"] is not None and run.device.type == "cuda":
        torch.cuda.set_rng_state(state["device_random_state"], run.device)
    run.folder.drop_rows_after(run.progress.step)


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
    state = load_file(path, *KEYS)
    check_like(state["progress"], asdict(Progress()), f"checkpoint '{path}': progress")
    return {**state, **{name: _listed(state[name]) for name in ("accuracy", "best")}}


def _listed(found: Any) -> list[Any]:
    """Return a list of one for each member, where older checkpoints have the one by itself."""
    if isinstance(found, list):
        return found
    return [] if found is None else [found]


def _check_configuration(run: Trainer, saved: Any) -> None:
    check_settings(saved)
    for name, value in run.config.saved().items():
        # A setting that is younger than the checkpoint had its default.
        found = saved.get(name, FIELDS[name].default)
        if name not in MOVABLE and value != found:
            raise InputError(
                f"checkpoint '{run.folder.last}' was trained with {name} {found}, "
                f"found {value}: a resumed run keeps its configuration; start a new one"
            )
