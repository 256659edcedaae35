"""Times that were measured on a device, kept on disk by versions and by the kernels' own code.

They lie beside the tuner's tiles (tile_cache.py).
"""

import functools
import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from sparse_kernels.triton.tile_cache import cache_path, write_whole

Numbers = list[float]


class Measurements:
    """Lists of numbers by key, with the file they are kept in; read when made, and then no more."""

    def __init__(self, kind: str, device: torch.device) -> None:
        """Read the file of a kind of measurement, if there is one."""
        self.path = cache_path(kind, _hardware(device), f"kernels{_sources()}")
        self.numbers = _read(self.path)

    def add(self, found: Mapping[str, Numbers]) -> None:
        """Use these numbers from now on, and keep them for later processes."""
        self.numbers.update(found)
        try:
            write_whole(self.path, {**_read(self.path), **found})
        except OSError as error:
            message = "what was measured is not kept, and a second run may choose otherwise: %s"
            logging.getLogger(__name__).warning(message, error)


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processor = platform.processor() or platform.machine()
    return f"{processor} {torch.backends.cpu.get_cpu_capability()} {os.cpu_count()} cores"


@functools.cache
def _sources() -> str:
    """Return a digest of the kernels' code: other code takes other times."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def _read(path: Path) -> dict[str, Numbers]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: [float(number) for number in numbers] for key, numbers in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        message = "measurements '%s' cannot be used: %s"
        logging.getLogger(__name__).warning(message, path, error)
        return {}
