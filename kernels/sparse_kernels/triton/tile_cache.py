"""Tiles that the tuner found, kept on disk: one JSON file by GPU and versions.

The file is read once a process, so that what another process tunes meanwhile changes no result
of this one. It lies in $SPARSE_ENGINE_CACHE, or in ~/.cache/sparse-engine, as do other things
that are measured.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparse_kernels.triton.tiles import Tile

FOLDER = "SPARSE_ENGINE_CACHE"
LARGEST = Tile(bm=1024, bk=256, warps=16, stages=10, rows=True)


class TileCache:
    """Tiles by key, with the file they are kept in."""

    def __init__(self, path: Path) -> None:
        """Read a file, if it exists; one that cannot be understood counts as empty, and says so."""
        self.path = path
        self.tiles = _read(path)

    def get(self, key: str) -> Tile | None:
        """Return the tile of a key, or None."""
        return self.tiles.get(key)

    def update(self, tiles: Mapping[str, Tile]) -> None:
        """Use these tiles from now on in this process."""
        self.tiles.update(tiles)

    def save(self) -> None:
        """Add this process's tiles to the file; a reader sees the old file or the new one."""
        merged = {**_read(self.path), **self.tiles}
        write_whole(self.path, {key: list(tile) for key, tile in merged.items()})


@functools.cache
def cache_of(device: torch.device) -> TileCache:
    """Return the tiles of a device; those of the interpreter are kept apart."""
    import triton

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    return TileCache(cache_path("tiles", gpu, f"triton{triton.__version__}"))


def cache_path(kind: str, device: str, *versions: str) -> Path:
    """Return the file of what was measured on a device, by the version of torch and others."""
    parts = (kind, device, f"torch{torch.__version__}", *versions)
    name = "-".join(re.sub(r"[^A-Za-z0-9.+]+", "_", part) for part in parts)
    folder = os.environ.get(FOLDER) or Path.home() / ".cache" / "sparse-engine"
    return Path(folder) / f"{name}.json"


def write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON to a file; a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=0) + "\n")
    part.replace(path)


def _read(path: Path) -> dict[str, Tile]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: checked_tile(numbers) for key, numbers in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        message = "tuned tiles '%s' cannot be used, the table's are: %s"
        logging.getLogger(__name__).warning(message, path, error)
        return {}


def checked_tile(numbers: Sequence[int]) -> Tile:
    """Return a tile from a file; TypeError or ValueError if it is none."""
    tile = Tile(*numbers)
    for name, value, most in zip(Tile._fields, tile, LARGEST):
        if not isinstance(value, int) or not 0 <= value <= most:
            raise ValueError(f"{name} {value!r} is out of range")
    return tile._replace(rows=bool(tile.rows))
