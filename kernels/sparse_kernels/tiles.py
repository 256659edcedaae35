"""Which tile a kernel runs with: a table by pass, GPU generation and block.

Chosen from what the compiler says without a GPU (no spill, shared memory within the chip, wgmma
where it exists); nothing here has been timed yet.
"""

from __future__ import annotations

from typing import NamedTuple

# Bytes of shared memory that one program may use.
SHARED_LIMIT = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


class Tile(NamedTuple):
    """BM positions; BK channels a step of the sum (the gather passes); warps and stages."""

    bm: int
    bk: int
    warps: int
    stages: int


def generation(capability: tuple[int, int]) -> int:
    """Return the newest generation of the table that a GPU's capability (major, minor) includes."""
    number = capability[0] * 10 + capability[1]
    return max((known for known in SHARED_LIMIT if known <= number), default=0)


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def gather_tile(arch: int, itemsize: int, reduce: int, written: int, rows: bool) -> Tile:
    """Return the tile of forward or input gradient.

    Args:
        arch: of generation().
        itemsize: bytes of an element.
        reduce, written: the block's size along the summed and the written dimension.
        rows: the variant that TMA feeds.
    """
    bk = min(reduce & -reduce, 128 // itemsize)
    wide = written >= 128
    if rows:
        return Tile(128, bk, 8 if wide else 4, 4 if bk * itemsize >= 128 else 6)
    if arch in (90, 100):
        return Tile(128, bk, 8 if wide else 4, 4)
    return Tile(64, bk, 4, 3)


def weight_grad_tile(arch: int, itemsize: int, bc: int, bo: int, rows: bool) -> Tile:
    """Return the tile of the weight gradient; bk is not used."""
    large = bc * bo >= 128 * 128
    bm = 64 if itemsize == 2 else 32
    if rows or arch in (90, 100):
        return Tile(bm, 0, 8 if large else 4, 3 if large else 4)
    return Tile(32, 0, 8 if large else 4, 3)
