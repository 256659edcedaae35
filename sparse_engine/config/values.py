"""Settings from a JSON file or from flags, checked for type and limits. Imports no torch."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_engine.config.config import FIELDS, PATHS
from sparse_engine.config.named import find_config
from sparse_engine.errors import InputError, nearest, say_renamed
from sparse_engine.paths import expanded

# Settings of earlier versions, each with the value that every run has now: it is read, no other.
GONE = {
    "start_block": None,
    "coarsen_at": None,
    "ablation": 0.0,
    "score": "l1",
    "fan_in": "free",
}
# Settings by the names that earlier versions gave them: files and flags may still have these.
EARLIER = {"regroup": "permute_channels"}
# Settings by the names of DynamicSparsity's arguments: files and flags may have these as well.
ARGUMENTS = {"rule": "topology", "interval": "update_interval", "schedule": "drop_schedule"}
# Choices by the names that earlier versions gave them.
EARLIER_CHOICES = {("backend", "gemm"): "native"}


def check_values(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return settings with their types and limits checked.

    Args:
        values: by field name.
        source: where they come from, for messages: "flag" or a file's name.

    Raises:
        InputError: an unknown name (with the nearest), a wrong type, a value out of range, or
            what only earlier versions could do.
    """
    checked = {}
    for name, value in present_names(values, source).items():
        if name in GONE:
            _check_gone(name, value, source)
            continue
        if name not in FIELDS:
            raise InputError(f"{source}: unknown setting '{name}'{nearest(name, FIELDS)}")
        checked[name] = None if value is None else _check(FIELDS[name], value, source)
        if value is None and FIELDS[name].default is not None:
            raise InputError(f"{source}: {name} may not be null")
    return checked


def present_names(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return settings by their present names.

    Raises:
        InputError: a setting is there by both of its names.
    """
    for names, which in ((EARLIER, "the earlier"), (ARGUMENTS, "another")):
        for other, own in names.items():
            if {other, own} <= values.keys():
                raise InputError(f"{source}: {other} is {which} name of {own}; leave it out")
    present = EARLIER | ARGUMENTS
    return {present.get(name, name): value for name, value in values.items()}


def as_trained(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a saved run, with those that an earlier version left undecided."""
    if settings.get("method", FIELDS["method"].default) != "edst":
        return dict(settings)
    schedule = "cosine" if settings.get("dataset") == "imagenet" else "constant"
    then = {"restart": 0.1, "drop": 0.5, "drop_schedule": schedule}
    return {**then, **{name: value for name, value in settings.items() if value is not None}}


def read_config_file(path: str) -> dict[str, Any]:
    """Return the settings in a JSON file, checked; its key "paper" is ignored.

    Args:
        path: of a file, or the name of one of the package's (see named.py).
    """
    values = read_json(find_config(path), "config file")
    if not isinstance(values, dict):
        found = type(values).__name__
        raise InputError(f"config file '{path}' must hold one JSON object, found {found}")
    # What a paper reports stands beside its settings, for people.
    values.pop("paper", None)
    return check_values(values, f"config file '{path}'")


def read_json(path: str | Path, what: str) -> Any:
    """Return what a JSON file holds.

    Raises:
        InputError: it is not there, cannot be read or is no JSON; `what` says what it should be.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{what} '{path}' does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what} '{path}' cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} '{path}' is not JSON: {error}") from None


def check_text(text: str, source: str) -> None:
    """Raise InputError for words that no system takes as the name of a file."""
    try:
        name = os.fsencode(text)
    except UnicodeEncodeError:
        name = b"\0"
    if b"\0" in name or len(name) > 4000 or max(map(len, name.split(b"/"))) > 255:
        raise InputError(f"{source}: {text[:40]!r} cannot be the name of anything; use another")


def _check_gone(name: str, value: Any, source: str) -> None:
    if value != GONE[name]:
        raise InputError(
            f"{source}: setting '{name}' was removed, found {json.dumps(value)}: leave it out, or "
            "use the version of sparse-engine that has it"
        )


def _check(spec: Any, value: Any, source: str) -> Any:
    kind = spec.metadata["kind"]
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise InputError(
            f"{source}: {spec.name} should be of type {kind.__name__}, found {value!r}"
        )
    if kind is str:
        check_text(value, source)
    choices = spec.metadata.get("choices")
    if kind is str and (spec.name, value) in EARLIER_CHOICES:
        present = EARLIER_CHOICES[spec.name, value]
        say_renamed(source, f"{spec.name} '{value}'", f"'{present}'")
        value = present
    if choices and value not in choices:
        hint = nearest(value, choices)
        raise InputError(
            f"{source}: {spec.name} should be one of {', '.join(choices)}, found '{value}'{hint}"
        )
    if kind in (int, float):
        _check_range(spec, value, source)
    return expanded(value) if spec.name in PATHS else kind(value)


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


def check_period(period: str | None) -> tuple[int | None, float | None]:
    """Return the steps or the seconds of "500" or "600s".

    Raises:
        InputError: it is neither.
    """
    if period is None:
        return None, None
    number = period.removesuffix("s")
    try:
        value = float(number) if period.endswith("s") else int(number)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise InputError(
            f"--checkpoint-every takes steps such as 500, or seconds such as 600s, found '{period}'"
        )
    return (None, float(value)) if period.endswith("s") else (int(value), None)
