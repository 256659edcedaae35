"""Launcher of the weight gradient: pick variant and tile, share the positions, add the sums."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels.layout import SlotIndex, block_grid
from sparse_kernels.triton.fusion import PLAIN, Fusion
from sparse_kernels.triton.launch import (
    check_size,
    descriptor,
    flat_geometry,
    images_last,
    kind,
    launch,
    options,
    pixel_strides,
    precision,
    processors,
)
from sparse_kernels.triton.sums import added
from sparse_kernels.triton.tile_choice import choose, launch_key
from sparse_kernels.triton.tiles import power_of_two, weight_grad_tile

# Programs that should run: in a few waves, the last of which may leave processors idle.
PROGRAMS_PER_PROCESSOR = 4


def weight_grad(
    x: Tensor,
    dy: Tensor,
    index: SlotIndex,
    sizes: Sequence[int],
    geometry: Sequence[Sequence[int]],
) -> Tensor:
    """Return dvalues [Z, BC, BO] of x [N, C, H, W] and dy [N, O, P, Q], both in one order."""
    gradient, _ = added(shares(x, dy, index, sizes, geometry, x.dtype), x.dtype, None)
    return gradient


def shares(
    x: Tensor,
    dy: Tensor,
    index: SlotIndex,
    sizes: Sequence[int],
    geometry: Sequence[Sequence[int]],
    dtype: torch.dtype,
    fusion: Fusion = PLAIN,
) -> Tensor:
    """Return dvalues by shares of the positions, for `added`: float32 [S, Z, BC, BO].

    Where all positions are one share, return dvalues [Z, BC, BO] of type dtype.

    Args:
        x: [N, C, H, W]; dy: [N, O, P, Q] in the same order.
        index, sizes, geometry: as of `gather`.
        dtype: of the gradient.
        fusion: only its transform of the input counts.
    """
    check_size(x, dy)
    bo, bc = sizes[4:]
    slots, (n, _, p, q) = len(index.out_block), dy.shape
    out_blocks = block_grid(sizes[:4], (bo, bc))[0]
    padded = {"TILE_C": power_of_two(bc), "TILE_O": power_of_two(bo)}
    shifts, fused = flat_geometry(geometry), fusion.name(True)
    tile = choose(
        lambda: launch_key("weight gradient", x, dy, sizes, slots, shifts, fused),
        functools.partial(weight_grad_tile, *kind(x), bc, bo, fused != "plain"),
        (*padded.values(),) == (bc, bo),
        (x, dy),
    )
    tiles = p * q * (n // tile.bm) if tile.rows else -(-n * p * q // tile.bm)
    splits = max(1, min(tiles, -(-PROGRAMS_PER_PROCESSOR * processors(x) // slots)))
    shape, sum_dtype = (slots, bc, bo), torch.float32 if splits > 1 else dtype
    partial = x.new_empty((splits, *shape) if splits > 1 else shape, dtype=sum_dtype)
    vectors = (fusion.scale, fusion.shift, partial)
    constants = {
        "GEOMETRY": shifts,
        "INPUT": fusion.input_kind,
        "PRECISION": precision(x),
        "BM": tile.bm,
        "BC": bc,
        "BO": bo,
        **options(tile),
    }
    blocks = (out_blocks, slots, splits)
    if tile.rows:
        _rows(x, dy, vectors, index, blocks, constants)
    else:
        _pointers(x, dy, vectors, index, blocks, {**constants, **padded})
    return partial


def _rows(
    x: Tensor,
    dy: Tensor,
    vectors: Sequence[Tensor | None],
    index: SlotIndex,
    blocks: tuple[int, int, int],
    constants: dict[str, Any],
) -> None:
    from sparse_kernels.triton.weight_grad_kernels import weight_grad_rows

    bm, (_, slots, splits) = constants["BM"], blocks
    launch(
        x,
        weight_grad_rows,
        (slots * splits,),
        descriptor(x, [bm, constants["BC"]]),
        descriptor(dy, [bm, constants["BO"]]),
        *vectors,
        *index,
        x.shape[0],
        *x.shape[2:],
        *dy.shape[2:],
        x.shape[1],
        *blocks,
        **constants,
    )


def _pointers(
    x: Tensor,
    dy: Tensor,
    vectors: Sequence[Tensor | None],
    index: SlotIndex,
    blocks: tuple[int, int, int],
    constants: dict[str, Any],
) -> None:
    from sparse_kernels.triton.weight_grad_kernels import weight_grad_pointers

    (n, channels, *image), (_, written, p, q) = x.shape, dy.shape
    _, slots, splits = blocks
    launch(
        x,
        weight_grad_pointers,
        (slots * splits,),
        x,
        dy,
        *vectors,
        *index,
        n * p * q,
        n,
        *image,
        p,
        q,
        channels,
        written,
        *blocks,
        *pixel_strides(x),
        *pixel_strides(dy),
        IMAGES_LAST=images_last(dy),
        RAGGED=bool(channels % constants["BC"] or written % constants["BO"]),
        **constants,
    )
