"""Files of a run, training state above all: written whole or not at all, read without running code.

Imports torch when first used, so that a wrong run folder is told at once.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from sparse_engine.errors import InputError

FORMAT = "sparse-engine-1"


def save_file(content: dict[str, Any], path: Path) -> None:
    """Write tensors and plain containers to a new file, sync it, then replace the old one."""
    import torch

    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def save_json(content: dict[str, Any], path: Path) -> None:
    """Write a JSON object to a new file, then replace the old one."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def load_file(path: Path, *keys: str) -> dict[str, Any]:
    """Read what save_file wrote, tensors to the CPU; `keys` are those it must hold.

    Raises:
        InputError: the file is missing, truncated, or not one of ours.
    """
    if not path.is_file():
        raise InputError(f"checkpoint '{path}' does not exist")
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    # Bytes that are no checkpoint make torch warn, and raise almost anything, IndexError included.
    except Exception:
        raise InputError(f"checkpoint '{path}' is truncated or not a checkpoint") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"checkpoint '{path}' was not written by this program ({FORMAT})")
    missing = [key for key in keys if key not in content]
    if missing:
        raise InputError(f"checkpoint '{path}' is of another kind: it has no {missing[0]}")
    return content
