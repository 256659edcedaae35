"""The papers' configurations, which come with the package, by name. Imports no torch."""

import os
from functools import cache
from importlib.resources import files
from pathlib import Path

from sparse_engine.errors import InputError, nearest, say_renamed

_SUFFIX = ".json"
# Where they lay in a checkout.
_EARLIER = "configs/"


def find_config(name: str) -> Path:
    """Return the file of a configuration: a path that exists, or else a name of the package's.

    Args:
        name: such as freetickets/edst-m3-wrn28-10-cifar10, with or without .json.

    Raises:
        InputError: there is neither; with the nearest names.
    """
    if os.path.exists(name):
        return Path(name)
    known = _configs()
    wanted = name.removeprefix(_EARLIER).removesuffix(_SUFFIX)
    if wanted in known:
        if name.startswith(_EARLIER):
            say_renamed("flags", name, wanted)
        return known[wanted]
    hint = nearest(wanted, known, most=3) or "; sparse-engine configs lists those of the papers"
    raise InputError(f"config file '{name}' does not exist, nor is there one of that name{hint}")


def config_names() -> list[str]:
    """Return the names of the package's configurations, FOLDER/NAME, in order."""
    return sorted(_configs())


@cache
def _configs() -> dict[str, Path]:
    root = Path(str(files("sparse_engine"))) / "configs"
    paths = root.rglob(f"*{_SUFFIX}")
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}
