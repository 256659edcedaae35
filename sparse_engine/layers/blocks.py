"""Block sizes as users write them: `32x32`, (32, 32) or `auto`, for layers by name or for all.

Imports no torch.
"""

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sparse_engine.errors import InputError, nearest

# Of one layer.
BlockChoice = tuple[int, int] | Sequence[int] | str
# Of a network: one for all layers, or by patterns of their names, the first that matches.
LayerBlocks = BlockChoice | Mapping[str, BlockChoice]
# A layer that counts in the budget with all of its weights.
DENSE = "dense"
# As wide as divides a layer's channels.
AUTO = "auto"
AUTOMATIC_WIDTHS = (128, 64, 32)
# Narrower blocks than this are kept, whether they divide a layer's channels or not.
NARROW = 32


def parse_block(text: str) -> tuple[int, int] | str:
    """Return (BO, BC) for `BOxBC`, or "auto"."""
    if text == AUTO:
        return text
    found = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)
    if not found or 0 in (int(found[1]), int(found[2])):
        raise InputError(
            f"block must be BOxBC with positive sizes, such as 32x32, or auto; found '{text}'"
        )
    return int(found[1]), int(found[2])


def parse_blocks(named: Mapping[str, Any], others: str) -> LayerBlocks:
    """Return what each layer is cut into, parsed.

    Args:
        named: `BOxBC`, `auto` or `dense` by patterns of layer names.
        others: the block of all other layers.

    Raises:
        InputError: what is no block, with the pattern that has it.
    """
    blocks: dict[str, BlockChoice] = {}
    for pattern, text in named.items():
        try:
            blocks[pattern] = text if text == DENSE else parse_block(str(text))
        except InputError as error:
            raise InputError(f"layer_blocks: '{pattern}': {error} (or dense)") from None
    rest = parse_block(others)
    return {**blocks, "*": blocks.get("*", rest)} if blocks else rest


def layer_block(block: BlockChoice, shape: Sequence[int]) -> tuple[int, int]:
    """Return (BO, BC) for a weight (O, C, ...): "auto" takes the widest width dividing each."""
    block = parse_block(block) if isinstance(block, str) else block
    if block == AUTO:
        return _widest(shape[0]), _widest(shape[1])
    sizes = block if isinstance(block, Sequence) else ()
    if len(sizes) != 2 or not all(isinstance(b, int) and b > 0 for b in sizes):
        raise InputError(f"block must be two positive integers (BO, BC), found {block!r}")
    return sizes[0], sizes[1]


def block_for(name: str, blocks: LayerBlocks) -> BlockChoice:
    """Return a layer's block, which may be DENSE: of patterns the first that matches its name."""
    if not isinstance(blocks, Mapping):
        return blocks
    for pattern, block in blocks.items():
        if fnmatch.fnmatchcase(name, pattern):
            return block
    raise InputError(f"no block is given for layer '{name}'; add one for '*', all other layers")


def check_patterns(blocks: LayerBlocks, names: Collection[str]) -> None:
    """Raise InputError for a pattern other than `*` that matches none of the layers' names."""
    for pattern in blocks if isinstance(blocks, Mapping) else ():
        if pattern != "*" and not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"block of '{pattern}': no layer that can be sparse has such a name"
                f"{nearest(pattern, names)}"
            )


def without_ragged_edge(block: tuple[int, int], shape: Sequence[int]) -> tuple[int, int]:
    """Return the block that a weight (O, C, ...) is cut into where another is asked for.

    A width that does not divide the channels becomes the largest smaller multiple of 16 that does
    (160 channels in 64: 32). One below 32 stays, and so does one for channels that no multiple of
    16 divides: the last block is ragged then.
    """
    return _dividing(block[0], shape[0]), _dividing(block[1], shape[1])


def _dividing(width: int, channels: int) -> int:
    if width < NARROW or channels % width == 0:
        return width
    smaller = range((width - 1) // 16 * 16, 0, -16)
    return next((w for w in smaller if channels % w == 0), width)


def _widest(channels: int) -> int:
    return next((w for w in AUTOMATIC_WIDTHS if channels % w == 0), AUTOMATIC_WIDTHS[-1])
