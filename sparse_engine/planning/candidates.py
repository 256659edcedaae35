"""A study's trainings as the user would run them: their settings, on other data. No torch."""

import json
import shlex
from dataclasses import dataclass
from typing import Any

from sparse_engine.config.config import FIELDS, Config
from sparse_engine.data.catalog import is_known
from sparse_engine.errors import InputError
from sparse_engine.methods.resolve import resolve
from sparse_engine.models.catalog import narrower, parse_name
from sparse_engine.planning.rows import Row

# Settings that a name has in its own words.
_IN_NAMES = ("method", "sparsity", "block", "taps", "distribution", "time_budget", "members")
# What a user says of all candidates, and a command repeats.
COMMON = ("dataset", "data_dir", "model", "batch_size", "epochs", "dense_epochs", "device", "dtype")


@dataclass(frozen=True)
class Candidate:
    """One row of a study, and the run that it would be here.

    config: resolved, of the whole length.
    """

    row: Row
    config: Config

    @property
    def name(self) -> str:
        """What a table calls it; its epochs stand beside that."""
        return name_of(self.row, self.config.model or "")


def candidate(row: Row, dense: Config, images: int, epochs: int | None = None) -> Candidate:
    """Return a row's training with the data, the model and the dense epochs of the user.

    Args:
        row: of the study.
        dense: the user's dense run, resolved.
        images: that the user trains on.
        epochs: of the training; as long beside the dense run as in the study unless said. An
            interval between updates that the study names scales with the steps.

    Raises:
        InputError: the training cannot be had here, such as a narrower network of a family that
            has one width.
    """
    epochs = epochs or max(1, round(row.length * (dense.dense_epochs or 1)))
    settings = {**row.settings, **{name: getattr(dense, name) for name in COMMON}}
    settings |= {"epochs": epochs, "model": _network(row, dense.model or "")}
    if (interval := settings.get("update_interval")) is not None:
        steps = images // (dense.batch_size or 1) * epochs
        settings["update_interval"] = max(1, round(interval * steps / row.steps))
    return Candidate(row, resolve(Config(**settings)))


def name_of(row: Row, network: str) -> str:
    """Return what a row is called, with the name of its network where that is a narrower one."""
    settings = row.settings
    parts = [settings["method"] + (f" {network}" if row.network != row.model else "")]
    if (members := settings.get("members")) is not None:
        parts[0] += f" of {members}"
    if settings.get("distribution") == "timed":
        parts.append(f"timed {settings.get('time_budget')}")
    elif settings.get("sparsity"):
        parts.append(f"{settings['sparsity']:g}")
    if "block" in settings:
        taps = settings.get("taps", "each")
        parts.append(settings["block"] + ("" if taps == "each" else f" taps {taps}"))
    others = sorted(settings.keys() - {*_IN_NAMES})
    return ", ".join([*parts, *(f"{name} {settings[name]}" for name in others)])


def command(candidate: Candidate, threads: int | None = None) -> str:
    """Return the command that trains a candidate; data that lie in no named folder are DIR's.

    threads: of a CPU, if the user has said so.
    """
    config = candidate.config
    values: dict[str, Any] = {name: getattr(config, name) for name in candidate.row.settings}
    values |= {name: getattr(config, name) for name in COMMON}
    if config.data_dir is None and is_known(config.dataset) and config.dataset != "digits":
        values["data_dir"] = "DIR"
    words = ["sparse-engine", "train"]
    for name in sorted(values, key=[*FIELDS].index):
        value = values[name]
        if value is not None and (value != FIELDS[name].default or name == "method"):
            flag = f"--{name.replace('_', '-')}"
            words += [flag] if value is True else [flag, _text(value)]
    return (f"OMP_NUM_THREADS={threads} " if threads else "") + shlex.join(words)


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _network(row: Row, model: str) -> str:
    """Return the user's network for a row: as much narrower as the row's is."""
    if row.network == row.model:
        return model
    (family, whole), (_, narrow) = parse_name(row.model), parse_name(row.network)
    if family != "wrn" or whole[0] != narrow[0]:
        raise InputError(f"{row.network} is no narrower {row.model}")
    share = narrow[1] / whole[1]
    # A little more, so that rounding takes no channel.
    network = narrower(model, share**2 + 1e-9)
    if network is None:
        raise InputError(f"{model} has no network {share:.2g} times as wide")
    return network
