"""The settings of a run: one frozen dataclass, from flags and a JSON file. Imports no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sparse_engine.errors import InputError, nearest
from sparse_engine.update_schedule import UPDATE_RULES

# Settings that say where and how to run, not what: they are not part of a saved configuration.
TRANSIENT = ("out", "resume", "config", "dry_run", "download", "scale", "tune")
# A resumed run may move to other hardware and other paths, and nothing else may change.
MOVABLE = ("data_dir", "teacher", "device", "backend", "workers", "download", "resume")


def setting(group: str, help: str, default: Any = None, **rules: Any) -> Any:
    """Declare a field that is also a flag.

    Args:
        group: heading in --help.
        help: one line; None as default means that the recipe decides.
        default: value without flag, file or recipe.
        rules: `kind` (int, float, str or bool), `choices`, `above` and `least` and `most` (limits
            of numbers).
    """
    return field(default=default, metadata={"group": group, "help": help, **rules})


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. None means: as the recipe of the data set says."""

    method: str = setting("run", "training method", "edst", kind=str)
    out: str | None = setting("run", "run folder [runs/METHOD-DATASET-NUMBER]", kind=str)
    resume: str | None = setting("run", "continue the run in this folder", kind=str)
    config: str | None = setting("run", "JSON file with settings; flags win over it", kind=str)
    dry_run: bool = setting("run", "print the plan and train nothing", False, kind=bool)
    seed: int = setting("run", "seed of everything random", 0, kind=int, least=0, most=2**31)
    device: str = setting("run", "where to run", "auto", kind=str, choices=("auto", "cpu", "cuda"))
    dtype: str = setting(
        "run", "bf16 runs under autocast", "fp32", kind=str, choices=("fp32", "bf16")
    )
    backend: str = setting(
        "run",
        "implementation of the sparse layers",
        "auto",
        kind=str,
        choices=("auto", "triton", "gemm", "masked"),
    )

    tune: bool = setting(
        "run",
        "first time tiles for the GPU kernels, and keep the fastest",
        False,
        kind=bool,
    )

    dataset: str = setting(
        "data", "name, imagefolder:PATH, or NAME of DATA_DIR/NAME.npz", "digits", kind=str
    )
    data_dir: str | None = setting("data", "folder with the data", kind=str)
    download: bool = setting("data", "fetch the data through torchvision", False, kind=bool)
    batch_size: int | None = setting("data", "images a step", kind=int, least=1)
    downsample_rate: float = setting(
        "data",
        "share of mini-batches with images of half the size",
        0.0,
        kind=float,
        least=0,
        most=0.99,
    )
    workers: int = setting("data", "loader processes (image folders)", 2, kind=int, least=0)
    select: str = setting(
        "data",
        "tickets: the last epoch, or the best on a validation split",
        "last",
        kind=str,
        choices=("last", "validation"),
    )
    validation: float = setting(
        "data", "share of training data for --select validation", 0.1, kind=float, above=0, most=0.5
    )

    model: str | None = setting("model", "wrn28-10, resnet18, torchvision/NAME, ...", kind=str)
    dropout: float = setting("model", "dropout rate", 0.0, kind=float, least=0, most=0.99)

    sparsity: float | None = setting(
        "sparsity", "share of weights that is absent, in [0, 1)", kind=float, least=0, most=0.999999
    )
    block: str | None = setting("sparsity", "BOxBC, 1x1 for unstructured, or auto", kind=str)
    taps: str = setting(
        "sparsity",
        "a block's taps are stored or absent each by itself, or all together",
        "each",
        kind=str,
        choices=("each", "all"),
    )
    distribution: str = setting(
        "sparsity", "layer densities", "erk", kind=str, choices=("erk", "er", "uniform")
    )
    start: str = setting(
        "sparsity",
        "first blocks; snip and grasp choose them, and the layer densities, from a few batches",
        "random",
        kind=str,
        choices=("random", "snip", "grasp"),
    )
    weight_init: str = setting(
        "sparsity",
        "weights of sparse layers as drawn for dense ones, or by active fan-in of each channel",
        "dense",
        kind=str,
        choices=("dense", "fan-in"),
    )
    topology: str | None = setting(
        "sparsity", "update rule of ensembles", kind=str, choices=UPDATE_RULES
    )
    start_sparsity: float | None = setting(
        "sparsity",
        "granet begins with this sparsity and prunes to --sparsity [0.5]",
        kind=float,
        least=0,
        most=0.999999,
    )
    prune_scope: str | None = setting(
        "sparsity",
        "pruning ranks all blocks together, or those of each layer [1x1 global, else layer]",
        kind=str,
        choices=("global", "layer"),
    )
    update_interval: int | None = setting(
        "sparsity", "steps between topology updates [scales with the run]", kind=int, least=1
    )
    drop: float | None = setting(
        "sparsity", "share of active blocks an update replaces", kind=float, above=0, most=1
    )
    drop_schedule: str | None = setting(
        "sparsity", "of the drop rate", kind=str, choices=("constant", "cosine")
    )
    stop: float | None = setting(
        "sparsity",
        "share of a phase that saves a ticket after which topology is fixed",
        kind=float,
        above=0,
        most=1,
    )

    members: int | None = setting("ensemble", "tickets", kind=int, least=1, most=1000)
    escape: float | None = setting(
        "ensemble",
        "share replaced between two tickets [edst 0.8, sup-tickets 0.5]",
        kind=float,
        above=0,
        most=1,
    )
    cycles: int | None = setting(
        "ensemble", "sup-tickets: tickets that are averaged", kind=int, least=1, most=1000
    )
    averaging: str | None = setting(
        "ensemble",
        "sup-tickets: mean of all, or exponential [caa]",
        kind=str,
        choices=("caa", "cima"),
    )

    rounds: int | None = setting(
        "pruning", "lottery: prunings [a fifth each]; ltr [20]", kind=int, least=1, most=1000
    )
    rewind: str | None = setting(
        "pruning",
        "lottery: weights and learning rate go back, or the latter alone [weights]",
        kind=str,
        choices=("weights", "learning-rate"),
    )
    rewind_point: float | None = setting(
        "pruning",
        "share of a dense run to go back to [lottery, ltr 0.05; kd-ticket 0]",
        kind=float,
        least=0,
        most=0.5,
    )
    teacher: str | None = setting(
        "pruning", "kd-ticket: run folder of the trained dense network", kind=str
    )
    temperature: float | None = setting(
        "pruning", "kd-ticket: of the soft labels [4]", kind=float, above=0, most=1000
    )
    distillation: float | None = setting(
        "pruning",
        "kd-ticket: share of the soft labels in the loss [0.9]",
        kind=float,
        above=0,
        most=1,
    )

    scale: float | None = setting(
        "optimisation",
        "multiplies epochs, the dense ones too, and a given --update-interval",
        kind=float,
        above=0,
        most=1000,
    )
    epochs: int | None = setting("optimisation", "in all, over all phases", kind=int, least=1)
    dense_epochs: int | None = setting(
        "optimisation", "epochs of the dense run that FLOPs are compared with", kind=int, least=1
    )
    lr: float | None = setting("optimisation", "highest learning rate", kind=float, above=0)
    momentum: float = setting("optimisation", "of SGD", 0.9, kind=float, least=0, most=0.9999)
    weight_decay: float | None = setting("optimisation", "of SGD", kind=float, least=0)
    norm_decay: str | None = setting(
        "optimisation",
        "weight decay on batch-norm too [on, imagenet off]",
        kind=str,
        choices=("on", "off"),
    )
    label_smoothing: float | None = setting(
        "optimisation", "of the training loss", kind=float, least=0, most=0.99
    )

    def saved(self) -> dict[str, Any]:
        """Return what config.json holds: every setting that decides the result."""
        return {k: v for k, v in asdict(self).items() if k not in TRANSIENT}


FIELDS = {f.name: f for f in fields(Config)}


def check_values(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return settings with their types and limits checked.

    Args:
        values: by field name.
        source: where they come from, for messages: "flag" or a file's name.

    Raises:
        InputError: an unknown name (with the nearest), a wrong type, or a value out of range.
    """
    checked = {}
    for name, value in values.items():
        if name not in FIELDS:
            raise InputError(f"{source}: unknown setting '{name}'{nearest(name, FIELDS)}")
        checked[name] = None if value is None else _check(FIELDS[name], value, source)
        if value is None and FIELDS[name].default is not None:
            raise InputError(f"{source}: {name} may not be null")
    return checked


def read_config_file(path: str) -> dict[str, Any]:
    """Return the settings in a JSON file, checked; its key "paper" is ignored."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"config file '{path}' does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config file '{path}' cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"config file '{path}' is not JSON: {error}") from None
    if not isinstance(values, dict):
        found = type(values).__name__
        raise InputError(f"config file '{path}' must hold one JSON object, found {found}")
    # What a paper reports stands beside its settings, for people.
    values.pop("paper", None)
    return check_values(values, f"config file '{path}'")


def _check(spec: Any, value: Any, source: str) -> Any:
    kind = spec.metadata["kind"]
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise InputError(
            f"{source}: {spec.name} should be of type {kind.__name__}, found {value!r}"
        )
    choices = spec.metadata.get("choices")
    if choices and value not in choices:
        hint = nearest(value, choices)
        raise InputError(
            f"{source}: {spec.name} should be one of {', '.join(choices)}, found '{value}'{hint}"
        )
    if kind in (int, float):
        _check_range(spec, value, source)
    return kind(value)


def _check_range(spec: Any, value: float, source: str) -> None:
    rules = spec.metadata
    if not abs(value) <= sys.float_info.max:
        raise InputError(f"{source}: {spec.name} must be a finite number, found {value}")
    for rule, wrong, words in (
        ("above", lambda limit: value <= limit, "above"),
        ("least", lambda limit: value < limit, "at least"),
        ("most", lambda limit: value > limit, "at most"),
    ):
        if rule in rules and wrong(rules[rule]):
            raise InputError(f"{source}: {spec.name} must be {words} {rules[rule]}, found {value}")
