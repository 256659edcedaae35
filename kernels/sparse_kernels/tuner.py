"""The tuner: time the tiles that could do for a layer, and keep the fastest that is right.

It runs only when asked, never inside a launch, so no captured graph and no first step contains
it. Where several processes train together, the first one tunes and tells the others.
"""

from __future__ import annotations

import itertools
import logging
import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed
from torch import Tensor

from sparse_kernels import reference
from sparse_kernels.activation import empty_images, order_of
from sparse_kernels.convolution import (
    conv2d,
    conv2d_input_grad,
    conv2d_weight_grad,
    output_image,
)
from sparse_kernels.launch import architecture, rows_fit
from sparse_kernels.layout import BlockLayout
from sparse_kernels.tile_cache import cache_of
from sparse_kernels.tile_choice import forced
from sparse_kernels.tiles import SHARED_LIMIT, Tile
from sparse_kernels.timing import once

Pass = Callable[[], Tensor]
REPETITIONS = 7
# What is faster than the present tile by less is noise.
NOTICEABLE = 0.98
# Fp32 sums a program may hold in registers: threads x 128.
SUMS_PER_THREAD = 128
# Against the reference in float32: the error of its data type times what other orders of a sum do.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def tune_conv2d(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    candidates: Sequence[Tile] | None = None,
) -> dict[str, Tile]:
    """Find the fastest tiles of the three passes for a layer and use them from now on.

    Args:
        x: [N, C, H, W], in the order and data type that training will have.
        values: [Z, BC, BO], of the same data type.
        layout: its number of slots counts, not where they lie.
        stride, padding, dilation: (height, width).
        candidates: tiles to try instead of those that fit the device.

    Returns:
        The tiles by launch key. `save` keeps them for later processes.

    Raises:
        RuntimeError: while a CUDA graph is being captured.
    """
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("tiles cannot be tuned while a CUDA graph is captured: tune before")
    found: dict[str, Tile] = {}
    if _rank() == 0:
        passes = _passes(x, values, layout, (stride, padding, dilation))
        for run, expected, reduced in passes:
            tiles = candidates or list(candidate_tiles(x, layout.block, reduced))
            found |= _fastest(run, expected, tiles)
    found = _from_first(found)
    cache_of(x.device).update(found)
    return found


def save(device: torch.device) -> None:
    """Write the tuned tiles of this process to the device's cache file; the first rank does."""
    if _rank() == 0:
        cache_of(device).save()


def candidate_tiles(
    x: Tensor, block: tuple[int, int], reduced: tuple[int, int] | None
) -> Iterator[Tile]:
    """Yield tiles that fit the registers and the shared memory of the device of x.

    Args:
        x: an image that the pass reads.
        block: (BO, BC).
        reduced: the block's sides (summed, written) of a gather pass; None for weight gradients.
    """
    size, limit = x.element_size(), SHARED_LIMIT[architecture(x)]
    widest = 128 // size
    for bm, warps, stages in itertools.product((64, 128, 256), (4, 8), (3, 4, 5)):
        if reduced is None:
            steps, sums, widths = [0], block[0] * block[1], sum(block)
        else:
            steps = [k for k in (widest // 2, widest) if reduced[0] % k == 0] or [16]
            sums, widths = bm * reduced[1], bm + reduced[1]
        for bk in steps:
            tile = Tile(bm, bk, warps, stages, rows_fit(Tile(bm, bk, warps, stages), x))
            loaded = (bk or bm) * widths * size
            if sums <= SUMS_PER_THREAD * 32 * warps and (stages - 1) * loaded <= limit:
                yield tile


def _passes(
    x: Tensor, values: Tensor, layout: BlockLayout, geometry: tuple[Sequence[int], ...]
) -> Iterator[tuple[Pass, Tensor, tuple[int, int] | None]]:
    """Yield each pass, what it should give (float32) and the sides of its block."""
    index, sizes, (bo, bc) = layout.tensors(), layout.sizes(), layout.block
    image = output_image(x.shape[2:], layout.shape[2:], *geometry)
    dy = empty_images(x, (x.shape[0], layout.shape[0], *image), order_of(x)).normal_()
    wide = [t.float() for t in (x, values, dy)]
    expected = (
        reference.conv2d(wide[0], wide[1], None, index, sizes, *geometry),
        reference.conv2d_input_grad(wide[2], wide[1], index, sizes, x.shape[2:], *geometry),
        reference.conv2d_weight_grad(wide[0], wide[2], index, sizes, *geometry),
    )
    yield lambda: conv2d(x, values, index, sizes, *geometry), expected[0], (bc, bo)
    yield (
        lambda: conv2d_input_grad(dy, values, index, sizes, x.shape[2:], *geometry),
        expected[1],
        (bo, bc),
    )
    yield lambda: conv2d_weight_grad(x, dy, index, sizes, *geometry), expected[2], None


def _fastest(run: Pass, expected: Tensor, tiles: Sequence[Tile]) -> dict[str, Tile]:
    """Return the fastest right tile by the key of the launch; nothing if none is as fast as now."""
    with forced(None) as keys:
        best, chosen = NOTICEABLE * _seconds(run), None
    for tile in tiles:
        with forced(tile):
            if _is_right(run, expected, tile) and (seconds := _seconds(run)) < best:
                best, chosen = seconds, tile
    return {} if chosen is None else {keys[0]: chosen}


def _is_right(run: Pass, expected: Tensor, tile: Tile) -> bool:
    """Return whether a tile compiles, runs and gives what is expected."""
    try:
        found = run()
    except Exception as error:  # a compiler and a driver raise what they like
        logging.getLogger(__name__).info("%s cannot run: %s", tile, error)
        return False
    error = (found.float() - expected).norm() / expected.norm().clamp(min=1e-30)
    if error <= TOLERANCE[found.dtype]:
        return True
    logging.getLogger(__name__).warning("%s is wrong by %.2g and not used", tile, float(error))
    return False


def _seconds(run: Pass) -> float:
    """Return the median time of a pass; run() before has compiled it."""
    run()
    on_gpu = torch.cuda.is_available()
    return statistics.median(once(run, on_gpu) for _ in range(REPETITIONS))


def _rank() -> int:
    return torch.distributed.get_rank() if _several() else 0


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _from_first(found: dict[str, Tile]) -> dict[str, Tile]:
    """Return what the first of several processes found."""
    if not _several():
        return found
    box = [found]
    torch.distributed.broadcast_object_list(box)
    return box[0]
