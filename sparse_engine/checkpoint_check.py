"""What a file may hold before it is used: plain values, whole tensors, the state of this very run.

A file that was cut, edited or crafted gives one clear error. Reading runs nothing of it, takes no
more memory than the file is long, and no kernel sees an index that its layout does not have.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import InputError

if TYPE_CHECKING:
    from sparse_engine.phases import Phase
    from sparse_engine.topology import Topology
    from sparse_engine.trainer import Trainer
    from sparse_engine.trainer_state import Progress

PLAIN = (bool, int, float, str, type(None))


def check_archive(path: Path) -> None:
    """Raise ValueError unless a file is a zip as torch.save writes it, with its checksums.

    torch.load looks at no checksum, and would unpack what is compressed, however large.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        size = sum(record.file_size for record in records)
        if packed or size > path.stat().st_size or archive.testzip() is not None:
            raise ValueError("compressed, overlapping or damaged records")


def check_plain(content: Any) -> None:
    """Raise ValueError for anything but containers of numbers, words and whole CPU tensors."""
    left, seen = [content], set()
    while left:
        value = left.pop()
        if type(value) is Tensor:
            _check_whole(value)
        elif isinstance(value, Mapping | list | tuple):
            if id(value) not in seen:
                seen.add(id(value))
                left += [*value, *value.values()] if isinstance(value, Mapping) else value
        elif type(value) not in PLAIN:
            raise ValueError(f"a value of type {type(value).__name__}")


def check_like(found: Any, like: Any, name: str) -> None:
    """Raise InputError unless `found` is built as `like`: keys, types, shapes and data types."""
    if isinstance(like, Mapping):
        demand(isinstance(found, Mapping), name, "an object", found)
        odd = sorted(map(str, found.keys() ^ like.keys()))
        demand(not odd, name, f"of the entries it has in this run, which differ in {odd[:1]}")
        for key, value in like.items():
            check_like(found[key], value, f"{name}.{key}")
    elif isinstance(like, Tensor):
        fits = isinstance(found, Tensor) and (found.shape, found.dtype) == (like.shape, like.dtype)
        demand(fits, name, f"{like.dtype} {list(like.shape)}", found)
    else:
        demand(type(found) is type(like), name, f"of type {type(like).__name__}", found)


def demand(condition: bool, name: str, words: str, found: Any = None) -> None:
    """Raise InputError, which says what `name` should be, unless a condition holds."""
    if not condition:
        if isinstance(found, Tensor):
            found = f"{found.dtype} {list(found.shape)}"
        shown = "" if found is None else f", found {str(found)[:80]}"
        raise InputError(f"{name} should be {words}{shown}")


def check_settings(settings: Any) -> None:
    """Raise InputError unless settings are what a JSON file can hold."""
    demand(isinstance(settings, Mapping), "config", "an object", settings)
    try:
        json.dumps(settings)
    except (TypeError, ValueError, RecursionError):
        raise InputError("config should hold nothing but what JSON can") from None


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


def check_model(model: nn.Module, state: Any, name: str = "model") -> None:
    """Raise InputError unless a state dict is of a model, whatever blocks its layers have."""
    from sparse_engine.recut import budget_layers, taps_of, weight_parameter, weight_shape

    demand(isinstance(state, Mapping), name, "a state dict", state)
    like, taps = dict(model.state_dict()), taps_of(model)
    for layer_name, layer in budget_layers(model):
        for part in ("weight", "values", "block_ids"):
            like.pop(f"{layer_name}.{part}", None)
        shape, dtype = weight_shape(layer), weight_parameter(layer).dtype
        ids = f"{layer_name}.block_ids"
        if ids in state:
            values = state.get(f"{layer_name}.values")
            _check_blocks(state[ids], values, shape, dtype, taps, f"{name}.{layer_name}")
            like[ids], like[f"{layer_name}.values"] = state[ids], values
        else:
            like[f"{layer_name}.weight"] = torch.empty(shape, dtype=dtype, device="meta")
    check_like(state, like, name)
    for key, value in state.items():
        finite = not value.is_floating_point() or bool(value.isfinite().all())
        demand(finite, f"{name}.{key}", "finite")


def check_topology(state: Any, topology: Topology) -> None:
    """Raise InputError unless a state is one of a topology's state_dict()."""
    like = topology.state_dict()
    demand(isinstance(state, Mapping), "topology", "an object", state)
    check_like({**state, "collected": {}}, {**like, "collected": {}}, "topology")
    demand(state["updates"] >= 0, "topology.updates", "at least 0", state["updates"])
    collected = state.get("collected")
    demand(isinstance(collected, Mapping), "topology.collected", "an object", collected)
    known = topology.layers.keys() if topology.needs_gradient else set()
    odd = sorted(map(str, collected.keys() - known))
    demand(not odd, "topology.collected", f"of layers that collect gradients, not '{odd[:1]}'")
    for name, scores in collected.items():
        total = torch.empty(topology.layers[name].layout.total, device="meta")
        check_like(scores, total, f"topology.collected.{name}")


def check_rest(state: Mapping[str, Any], run: Trainer) -> None:
    """Raise InputError unless all else in a checkpoint fits a run with its network loaded."""
    network, progress = run.network, run.progress
    momenta = network.optimizer.state_dict()["state"]
    demand(isinstance(state["optimizer"], Mapping), "optimizer", "an object", state["optimizer"])
    check_like(state["optimizer"].get("state"), momenta, "optimizer.state")
    check_topology(state["topology"], network.topology)
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


def _check_whole(tensor: Tensor) -> None:
    usual = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not usual or tensor.is_quantized or tensor.is_nested or tensor.requires_grad:
        raise ValueError("a tensor of another kind")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise ValueError("a tensor larger than its memory")


def _check_blocks(
    ids: Any, values: Any, shape: tuple[int, ...], dtype: torch.dtype, taps: str, name: str
) -> None:
    """Check block ids [Z] and values [Z, BC, BO] of one layer against each other and its weight."""
    from sparse_kernels import BlockLayout
    from sparse_kernels.layout import block_grid, clamp_block

    fits = isinstance(values, Tensor) and values.dtype == dtype and values.ndim == 3
    demand(fits and values.numel() > 0, f"{name}.values", f"{dtype} [Z, BC, BO]", values)
    slots, block = len(values), tuple(values.shape[:0:-1])
    clamped = clamp_block(block, *shape[:2])
    demand(block == clamped, f"{name}.values", f"blocks of at most {clamped}", values)
    total = math.prod(block_grid(shape, block))
    demand(slots <= total, f"{name}.values", f"at most the {total} blocks of the weight", values)
    demand(isinstance(ids, Tensor) and ids.dtype == torch.int32, f"{name}.block_ids", "int32", ids)
    try:
        BlockLayout(shape, block, torch.arange(slots), taps=taps).validate(ids)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


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
