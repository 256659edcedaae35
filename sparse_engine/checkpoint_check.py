"""What a checkpoint may hold before it is used: the state of this very run.

A file that was cut, edited or crafted gives one clear error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparse_engine.schema import check_like, demand
from sparse_engine.state_dict import check_model

if TYPE_CHECKING:
    from sparse_engine.phases import Phase
    from sparse_engine.trainer import Trainer
    from sparse_engine.trainer_state import Progress


def check_progress(found: Any, start: Progress, phases: Sequence[Phase]) -> None:
    """Raise InputError unless progress is a place in a list of phases that began at `start`."""
    check_like(found, asdict(start), "progress")
    phase, done, begun = found["phase"], found["phase_step"], found["begun"]
    demand(0 <= phase <= len(phases), "progress.phase", f"from 0 to {len(phases)}", phase)
    steps = phases[phase].steps if phase < len(phases) and begun else 1
    demand(0 <= done < steps, "progress.phase_step", f"from 0 to {steps - 1}", done)
    demand(bool(phase or begun), "progress", "at or after the first step")
    demand(not begun or phase < len(phases), "progress.begun", "false after the last phase")
    over, started = phases[:phase], phases[: phase + begun]
    actions = [action for p in started for action in p.begin]
    expected = {
        "step": start.step + sum(p.steps for p in over) + done,
        "tickets": start.tickets + sum(p.tickets for p in over),
        "member": start.member + sum(action.starts_member for action in actions),
    }
    for name, value in expected.items():
        demand(found[name] == value, f"progress.{name}", f"{value} there", found[name])
    seconds = found["train_seconds"]
    demand(0 <= seconds < math.inf, "progress.train_seconds", "a time", seconds)


def check_rest(state: Mapping[str, Any], run: Trainer) -> None:
    """Raise InputError unless all else in a checkpoint fits a run with its network loaded."""
    network, progress = run.network, run.progress
    momenta = network.optimizer.state_dict()["state"]
    demand(isinstance(state["optimizer"], Mapping), "optimizer", "an object", state["optimizer"])
    check_like(state["optimizer"].get("state"), momenta, "optimizer.state")
    network.topology.check_state(state["topology"])
    _check_guard(state["guard"], run)
    members = len(network.members)
    demand(len(state["accuracy"]) == members, "accuracy", f"a list of {members}", state["accuracy"])
    for found in state["accuracy"]:
        _check_accuracy(found, "accuracy")
    _check_kept(state["kept"], run)
    demand(len(state["best"]) in (0, members), "best", f"a list of {members} states, or empty")
    for found in state["best"]:
        _check_state(found, ("accuracy", "model"), run, "best")
    begun = members * (progress.phase + progress.begun)
    _check_densities(state["densities"], begun, progress.tickets)
    check_like(state["random_state"], torch.get_rng_state(), "random_state")
    device_state = state["device_random_state"]
    fits = isinstance(device_state, Tensor) and device_state.dtype == torch.uint8
    demand(device_state is None or fits, "device_random_state", "bytes or nothing", device_state)


def _check_guard(found: Any, run: Trainer) -> None:
    check_like(found, run.guard.state_dict(), "guard")
    numbers = {name: float(value) for name, value in found.items()}
    for name, number in numbers.items():
        least = -1 if name == "_fatal" else 0
        demand(least <= number < math.inf or name == "_total", f"guard.{name}", "a count", number)
    demand(math.isfinite(numbers["_total"]), "guard._total", "finite", numbers["_total"])
    demand(numbers["_fatal"] == -1, "guard._fatal", "-1: no step has failed", numbers["_fatal"])
    demand(numbers["scale"] > 0, "guard.scale", "above 0", numbers["scale"])
    step = run.progress.step
    demand(numbers["_steps"] == step, "guard._steps", f"{step} there", numbers["_steps"])


def _check_accuracy(found: Any, name: str) -> None:
    check_like(found, 0.0, name)
    demand(0 <= found <= 1, name, "from 0 to 1", found)


def _check_kept(kept: Any, run: Trainer) -> None:
    """Check the states that later phases need against what the phases so far have kept."""
    progress, phases = run.progress, run.phases
    actions = [a for phase in phases[: progress.phase] for a in (*phase.begin, *phase.end)]
    actions += phases[progress.phase].begin if progress.begun else ()
    expected = {action.name: action.keeps for action in actions if action.keeps}
    fits = isinstance(kept, Mapping) and kept.keys() == expected.keys()
    demand(fits, "kept", f"states by name, {sorted(expected)}")
    for name, keys in expected.items():
        _check_state(kept[name], keys, run, f"kept.{name}")


def _check_state(found: Any, keys: Iterable[str], run: Trainer, name: str) -> None:
    fits = isinstance(found, Mapping) and found.keys() == set(keys)
    demand(fits, name, f"an object with {', '.join(keys)}")
    _check_accuracy(found["accuracy"], f"{name}.accuracy")
    check_model(run.network.members[0], found["model"], f"{name}.model")
    count = found.get("count", 1)
    demand(type(count) is int and count >= 1, f"{name}.count", "a whole number from 1", count)


def _check_densities(found: Any, phases: int, tickets: int) -> None:
    """Check the densities by layer of each phase begun and each ticket saved."""
    check_like(found, {"phases": [], "tickets": []}, "densities")
    for name, count in (("phases", phases), ("tickets", tickets)):
        listed = found[name]
        fits = len(listed) == count
        demand(fits, f"densities.{name}", f"a list of {count}", listed)
        for layers in listed:
            demand(isinstance(layers, Mapping), f"densities.{name}", "objects", layers)
            for value in layers.values():
                number = type(value) is float and 0 < value <= 1
                demand(number, f"densities.{name}", "of numbers above 0, at most 1", value)
