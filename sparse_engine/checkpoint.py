"""Files that hold training state: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from sparse_engine.errors import InputError

FORMAT = "sparse-engine-1"


def save_file(content: dict[str, Any], path: Path) -> None:
    """Write tensors and plain containers to a new file, sync it, then replace the old one."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load_file(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what save_file wrote.

    Raises:
        InputError: the file is missing, truncated, or not one of ours.
    """
    if not path.is_file():
        raise InputError(f"checkpoint '{path}' does not exist")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, pickle.UnpicklingError):
        raise InputError(f"checkpoint '{path}' is truncated or not a checkpoint") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"checkpoint '{path}' was not written by this program ({FORMAT})")
    return content
