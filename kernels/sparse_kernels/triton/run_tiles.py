"""Which tile a kernel of runs works with: a table by pass, GPU generation and block.

Chosen as in tiles.py from what the compiler says without a GPU; nothing here has been timed yet.
"""

import itertools
from typing import NamedTuple

from sparse_kernels.triton.tiles import LARGE_SHARED, SHARED_LIMIT, Tile, power_of_two

# Kernels wider than this have one tap at a time.
WIDEST = 7
LENGTHS = (8, 4, 2)
# Bytes of shared memory beside the buffers.
SCRATCH = 6 * 1024
# fp32 numbers that the tensor memory of sm_100 holds.
TENSOR_MEMORY = 128 * 512


class RunTile(NamedTuple):
    """Runs of `length` pixels; a program of the weight gradient adds up `taps` of `strips` each."""

    length: int
    tile: Tile
    taps: int = 0
    strips: int = 1


def run_length(width: int, longest: int, whole: bool = False) -> int:
    """Return how many pixels of a row of `width` a program writes, 0 if there is no such number.

    The longest that divides the row if that is at least 4, else the one with the fewest loads.

    Args:
        width: pixels of a row.
        longest: that fits the registers.
        whole: a run must not reach past the end of its row.
    """
    lengths = [length for length in LENGTHS if length <= longest]
    dividing = [length for length in lengths if width % length == 0]
    if dividing and (whole or dividing[0] >= 4):
        return dividing[0]
    if whole or not lengths:
        return 0
    return min(lengths, key=lambda length: (-(-width // length) * (length + 2), length))


def run_gather_tile(
    arch: int, itemsize: int, exact: bool, reduce: int, written: int, taps: int, fused: bool,
    tma: bool,
) -> RunTile | None:  # fmt: skip
    """Return the tile of forward or input gradient, None where taps one at a time are better.

    Args:
        taps: S, the width of the kernel.
        The others as of gather_tile.
    """
    wide = power_of_two(written)
    spills = wide >= 64 and ((fused and not tma) if arch in LARGE_SHARED else taps > 5)
    if spills or not _has_runs(itemsize, taps, fused):
        return None
    if arch in LARGE_SHARED:
        bm, length, warps = 64, min(8, 256 // wide), 4
        if arch == 100:
            length = _fitting(length, (taps - 1) * wide * bm)
            # Four spilled under Triton 3.8.
            warps = 8 if wide == 16 or (fused and wide == 128) else 4
    else:
        bm, length = (64, 4) if wide == 32 else (32, 4 if wide == 128 else 8)
        warps = _mma_warps(bm, wide)
    # As many buffers as there are stages, of which mma takes one, and tcgen05 two more.
    stages, buffers = 3, {90: 3, 100: 5}.get(arch, 2)
    per_channel = itemsize * ((length + taps - 1) * bm + taps * wide)
    most = min(64 if arch in LARGE_SHARED else 32, SHARED_LIMIT[arch] // (per_channel * buffers))
    if arch not in LARGE_SHARED and wide == 32 and taps > 3:
        most = 16  # each warp has all weights of a step in registers
    bk = min(reduce & -reduce, 1 << (most.bit_length() - 1))
    return RunTile(length, Tile(bm, bk, warps, stages, tma)) if length > 1 and bk >= 16 else None


def run_weight_grad_tile(
    arch: int, itemsize: int, exact: bool, bc: int, bo: int, taps: int, fused: bool, tma: bool
) -> RunTile | None:
    """Return the tile of the weight gradient, as run_gather_tile does."""
    rows, columns = power_of_two(bc), power_of_two(bo)
    spills = arch in LARGE_SHARED and taps > 5 and not tma
    unbuffered = arch not in LARGE_SHARED and (rows, columns) == (128, 16)
    if spills or unbuffered or not _has_runs(itemsize, taps, fused):
        return None
    if arch not in LARGE_SHARED or rows < 64:
        return _by_mma(arch, itemsize, rows, columns, taps, fused, tma)
    warps = 8 if arch == 100 else rows // 16
    together = _taps_together(rows * columns, taps, warps)
    if not together:
        return None
    if arch == 100:
        together = min(together, 4)
        length = _fitting(4, together * rows * columns, less=1)
        return RunTile(length, Tile(32, 0, warps, 3, tma), together)
    loads = rows * (8 + together - 1) + columns * 8
    bm = 32 if 3 * 32 * itemsize * loads <= SHARED_LIMIT[arch] else 16
    return RunTile(8, Tile(bm, 0, warps, 3, tma), together)


def _by_mma(
    arch: int, itemsize: int, rows: int, columns: int, taps: int, fused: bool, tma: bool
) -> RunTile | None:
    """Return a tile of mma, by which narrow blocks are multiplied, in pairs of strips if those fit.

    Where wgmma multiplies, pairs are no faster by the model: it reads shared memory more often, and
    there are fewer programs.
    """
    warps = _mma_warps(rows, columns)
    together = _taps_together(rows * columns, taps, warps)
    sums = together * rows * columns // (32 * warps)
    # On sm_120 pointers spilled a few registers beside large sums.
    spills = arch == 120 and not tma and sums > 48 and (fused or together < taps)
    if not together or spills:
        return None
    # Pointers of pairs spilled in part, and those of longer runs fit beside small sums alone.
    pairs = (2, 1) if tma and together == taps and sums <= 48 else (1,)
    lengths = (8, 4) if tma or sums <= 48 else (4,)
    for strips, length in itertools.product(pairs, lengths):
        loads = strips * rows * (length + together - 1) + columns * length
        buffers = 2 * 16 * itemsize * loads + SCRATCH
        if buffers <= SHARED_LIMIT[arch] or not (tma or fused):
            return RunTile(length, Tile(16, 0, warps, 3, tma), together, strips)
    return None


def _has_runs(itemsize: int, taps: int, fused: bool) -> bool:
    """Return whether tiles were looked for: 16 bits, and what is fused with the usual kernels."""
    return itemsize == 2 and (taps <= 3 or not fused)


def _fitting(longest: int, size: int, less: int = 0) -> int:
    """Return the longest run, 0 if none, whose sums fit the tensor memory of sm_100.

    It keeps those of products that follow each other side by side: `size` numbers for each pixel of
    a run, or for each but one.
    """
    fitting = (n for n in LENGTHS if n <= longest and (n - less) * size <= TENSOR_MEMORY)
    return next(fitting, 0)


def _taps_together(block: int, taps: int, warps: int) -> int:
    """Return of how many taps a program has the sums: of all, or of four, or 0 if they do not fit.

    They take at most 128 registers a thread.
    """
    together = min(taps, 128 * 32 * warps // block)
    if together < taps:
        together = min(together, -(-taps // 2))
    return together if together >= min(3, taps) else 0


def _mma_warps(rows: int, columns: int) -> int:
    """Return how many warps mma can share sums [rows, columns] among, from two to eight.

    Where products follow each other, Triton cuts the longer side alone: in pieces of 16 rows or
    8 columns, and repeats what is left over.
    """
    return max(2, min(8, rows // 16 if rows >= columns else columns // 8))
