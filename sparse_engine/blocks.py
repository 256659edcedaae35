"""Block sizes as users write them: `32x32`, (32, 32) or `auto`. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sparse_engine.errors import InputError

BlockChoice = tuple[int, int] | Sequence[int] | str
AUTOMATIC_WIDTHS = (128, 64, 32)


def parse_block(text: str) -> tuple[int, int] | str:
    """Return (BO, BC) for `BOxBC`, or "auto"."""
    if text == "auto":
        return text
    found = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)
    if not found or 0 in (int(found[1]), int(found[2])):
        raise InputError(
            f"block must be BOxBC with positive sizes, such as 32x32, or auto; found '{text}'"
        )
    return int(found[1]), int(found[2])


def layer_block(block: BlockChoice, shape: Sequence[int]) -> tuple[int, int]:
    """Return (BO, BC) for a weight (O, C, ...): "auto" takes the widest width dividing each."""
    if isinstance(block, str):
        parsed = parse_block(block)
        if isinstance(parsed, str):
            return _widest(shape[0]), _widest(shape[1])
        return parsed
    if len(block) != 2 or not all(isinstance(b, int) and b > 0 for b in block):
        raise InputError(f"block must be two positive integers (BO, BC), found {block!r}")
    return block[0], block[1]


def _widest(channels: int) -> int:
    return next((w for w in AUTOMATIC_WIDTHS if channels % w == 0), AUTOMATIC_WIDTHS[-1])
