"""Which tile a kernel runs with: a table by pass, GPU generation and block.

Chosen from what the compiler says without a GPU (no spill, shared memory within the chip, wgmma
where it exists); nothing here has been timed yet. Tuned tiles win over it (tuner.py).
"""

from typing import NamedTuple

# Bytes of shared memory that one program may use.
SHARED_LIMIT = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}

# Generations whose tensor cores read operands from shared memory, of which they have most.
LARGE_SHARED = (90, 100)


class Tile(NamedTuple):
    """BM positions; BK channels a step of the sum (the gather passes); warps and stages.

    tma: for the variant that TMA feeds.
    """

    bm: int
    bk: int
    warps: int
    stages: int
    tma: bool = False


def generation(capability: tuple[int, int]) -> int:
    """Return the newest generation of the table that a GPU's capability (major, minor) includes."""
    number = capability[0] * 10 + capability[1]
    return max((known for known in SHARED_LIMIT if known <= number), default=0)


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def gather_tile(
    arch: int, itemsize: int, exact: bool, reduce: int, written: int, fused: bool, tma: bool
) -> Tile:
    """Return the tile of forward or input gradient.

    Args:
        arch: of generation().
        itemsize: bytes of an element.
        exact: fp32 without TF32, which no tensor core does: smaller tiles fit the registers.
        reduce, written: the block's size along the summed and the written dimension.
        fused: with a transform of the input or sums of the output, which need registers.
        tma: the variant that TMA feeds.
    """
    bk = min(reduce & -reduce, 128 // itemsize)
    warps = 8 if written >= 128 else 4
    if tma and fused and bk * itemsize < 128:
        return Tile(128, bk, 8, 6, True)
    if tma:
        return Tile(128, bk, warps, 4 if bk * itemsize >= 128 else 6, True)
    if exact:
        bm = 32 if fused and written >= 128 else 64
        # On sm_80 Triton 3.6 spilled with four warps for 32 channels.
        wide = fused or written >= 64 or (arch, written) == (80, 32)
        return Tile(bm, min(bk, 16), 8 if wide else 4, 3)
    if arch in LARGE_SHARED:
        # Four warps spilled a fused block of 64 in TF32 under Triton 3.6.
        return Tile(128, bk, 8 if fused and itemsize == 4 and written >= 64 else warps, 4)
    # With so short a sum, four warps spilled on sm_89; with so wide a fused one, on sm_80.
    short, wide = bk * itemsize <= 32 and written == 64, fused and written >= 64
    if (itemsize, reduce, written) == (2, 64, 64):
        # A register or two, under Triton 3.8: with four warps on sm_89, with eight on sm_120.
        short, wide = arch == 89, fused and arch != 120
    return Tile(64, bk, 8 if short or wide else 4, 3)


def weight_grad_tile(
    arch: int, itemsize: int, exact: bool, bc: int, bo: int, fused: bool, tma: bool
) -> Tile:
    """Return the tile of the weight gradient; its bk is not used."""
    if fused and exact and bc * bo >= 64 * 64:
        return Tile(32 if bc * bo < 128 * 128 else 16, 0, 8, 3)
    if arch in LARGE_SHARED:
        large = bc * bo >= 128 * 128
    else:
        large = bc * bo * itemsize >= 128 * 128 * 2 or (max(bc, bo) >= 128 and itemsize == 4)
    warps = 8 if large else 4
    if (tma or arch in LARGE_SHARED) and not exact:
        return Tile(64 if itemsize == 2 else 32, 0, warps, 3 if large else 4, tma)
    # Triton 3.8 spilled with three stages.
    stages = 2 if arch == 120 and itemsize == 4 and max(bc, bo) == 128 else 3
    return Tile(32, 0, warps, stages, tma)
