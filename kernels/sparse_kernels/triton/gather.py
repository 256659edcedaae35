"""Launchers of forward and input gradient: check what a kernel needs, pick variant and tile."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels.layout import PassIndex
from sparse_kernels.registration import positions
from sparse_kernels.triton.fusion import PLAIN, Fusion
from sparse_kernels.triton.launch import (
    check_size,
    descriptor,
    flat_geometry,
    images_last,
    is_aligned,
    kind,
    launch,
    options,
    pixel_strides,
    precision,
)
from sparse_kernels.triton.sums import TileSums
from sparse_kernels.triton.tile_choice import choose, launch_key
from sparse_kernels.triton.tiles import Tile, gather_tile, power_of_two


def gather(
    src: Tensor,
    values: Tensor,
    bias: Tensor | None,
    dst: Tensor,
    index: PassIndex,
    sizes: Sequence[int],
    geometry: Sequence[Sequence[int]],
    transposed: bool,
    fusion: Fusion = PLAIN,
    x: Tensor | None = None,
) -> TileSums | None:
    """Fill dst with the forward pass of src, or with its input gradient when transposed.

    Args:
        src: [N, C, H, W] ([N, O, P, Q] when transposed).
        values: [Z, BC, BO], contiguous.
        bias: of the written channels, or None.
        dst: what is written, in the order of src.
        index: the pass's lists.
        sizes: BlockLayout.sizes().
        geometry: stride, padding, dilation.
        transposed: input gradient.
        fusion: what else is done to the tiles; its residual in the order of dst.
        x: the layer's input, in the order of dst: when transposed with a transform of the input.

    Returns:
        The tiles' sums where fusion.writes_sums(), else None.
    """
    check_size(src, dst)
    bo, bc = sizes[4:]
    block_red, block_dst = (bo, bc) if transposed else (bc, bo)
    constants = {
        "GEOMETRY": flat_geometry(geometry),
        "TRANSPOSED": transposed,
        **fusion.constants(transposed),
        "PRECISION": precision(src),
        "BLOCK_RED": block_red,
        "BLOCK_DST": block_dst,
    }
    values = values.contiguous()
    whole = power_of_two(block_dst) == block_dst and is_aligned(values)
    name, fused = "input gradient" if transposed else "forward", fusion.name(transposed)
    tile = choose(
        lambda: launch_key(name, src, dst, sizes, len(index.slot), constants["GEOMETRY"], fused),
        functools.partial(gather_tile, *kind(src), block_red, block_dst, fused != "plain"),
        whole,
        [t for t in (src, dst, x, fusion.residual) if t is not None],
    )
    sums = None
    if fusion.writes_sums(transposed):
        tiles = -(-positions(dst.shape, 1) // tile.bm)
        sums = dst.new_empty((tiles, 2, dst.shape[1]), dtype=torch.float32)
    run = _gather_rows if tile.rows else _gather_pointers
    bias = None if bias is None else bias.contiguous()
    vectors = (bias, fusion.scale, fusion.shift, sums)
    run(src, values, (dst, x, fusion.residual), vectors, index, tile, constants)
    return None if sums is None else TileSums(sums, positions(dst.shape, 1))


def _gather_rows(
    src: Tensor,
    values: Tensor,
    written: Sequence[Tensor | None],
    vectors: Sequence[Tensor | None],
    index: PassIndex,
    tile: Tile,
    constants: dict[str, Any],
) -> None:
    from sparse_kernels.triton.gather_kernels import gather_rows

    dst, (bias, *others) = written[0], vectors
    block_dst, (n, channels, hd, wd) = constants["BLOCK_DST"], dst.shape
    blocks = -(-channels // block_dst)
    box = [block_dst, tile.bk] if constants["TRANSPOSED"] else [tile.bk, block_dst]
    launch(
        dst,
        gather_rows,
        (blocks * hd * wd * (n // tile.bm),),
        descriptor(src, [tile.bm, tile.bk]),
        descriptor(values, box),
        bias,
        *(None if t is None else descriptor(t, [tile.bm, block_dst]) for t in written),
        *others,
        *index,
        n,
        *src.shape[2:],
        wd,
        src.shape[1],
        channels,
        blocks,
        **constants,
        BM=tile.bm,
        BK=tile.bk,
        **options(tile),
    )


def _gather_pointers(
    src: Tensor,
    values: Tensor,
    written: Sequence[Tensor | None],
    vectors: Sequence[Tensor | None],
    index: PassIndex,
    tile: Tile,
    constants: dict[str, Any],
) -> None:
    from sparse_kernels.triton.gather_kernels import gather_pointers

    dst, (bias, *others) = written[0], vectors
    block_dst, (n, channels, hd, wd) = constants["BLOCK_DST"], dst.shape
    blocks, padded = -(-channels // block_dst), power_of_two(block_dst)
    ragged = src.shape[1] % constants["BLOCK_RED"] or channels % block_dst or padded != block_dst
    launch(
        dst,
        gather_pointers,
        (blocks * -(-n * hd * wd // tile.bm),),
        src,
        values,
        bias,
        *written,
        *others,
        *index,
        n * hd * wd,
        n,
        *src.shape[2:],
        hd,
        wd,
        src.shape[1],
        channels,
        blocks,
        *pixel_strides(src),
        *pixel_strides(dst),
        **constants,
        IMAGES_LAST=images_last(dst),
        RAGGED=bool(ragged),
        BM=tile.bm,
        BK=tile.bk,
        TILE_DST=padded,
        **options(tile),
    )
