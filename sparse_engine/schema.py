"""What a value read from a file must look like: one clear error where it does not."""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparse_engine.errors import InputError


def check_like(value: Any, like: Any, name: str) -> None:
    """Raise InputError unless `value` is built as `like`: keys, types, shapes and data types."""
    if isinstance(like, Mapping):
        demand(isinstance(value, Mapping), name, "an object", value)
        odd = sorted(map(str, value.keys() ^ like.keys()))
        demand(not odd, name, f"of the entries it has in this run, which differ in {odd[:1]}")
        for key, part in like.items():
            check_like(value[key], part, f"{name}.{key}")
    elif isinstance(like, Tensor):
        fits = isinstance(value, Tensor) and (value.shape, value.dtype) == (like.shape, like.dtype)
        demand(fits, name, f"{like.dtype} {list(like.shape)}", value)
    else:
        demand(type(value) is type(like), name, f"of type {type(like).__name__}", value)


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
