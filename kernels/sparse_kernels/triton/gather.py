"""Launchers of forward and input gradient: check what a kernel needs, pick variant and tile."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_kernels.index_tensors import PassIndex
from sparse_kernels.registration import positions
from sparse_kernels.triton.fusion import PLAIN, Fusion
from sparse_kernels.triton.launch import (
    check_size,
    descriptor,
    flat_geometry,
    is_aligned,
    is_hwnc,
    kind,
    launch,
    options,
    pixel_strides,
    precision,
)
from sparse_kernels.triton.sums import TileSums
from sparse_kernels.triton.tile_choice import choose, launch_key
from sparse_kernels.triton.tiles import Tile, gather_tile, power_of_two


@dataclass
class GatherCall:
    """What a pass is called with: forward, or the input gradient when transposed.

    src: [N, C, H, W] ([N, O, P, Q] when transposed).
    values: [Z, BC, BO].
    dst: what is written, in the order of src.
    lists: the pass's.
    sizes: BlockLayout.sizes().
    geometry: stride, padding, dilation.
    bias: of the written channels, or None.
    fusion: what else is done to the tiles; its residual in the order of dst.
    x: the layer's input, in the order of dst: when transposed with a transform of the input.
    """

    src: Tensor
    values: Tensor
    dst: Tensor
    lists: PassIndex
    sizes: Sequence[int]
    geometry: Sequence[Sequence[int]]
    transposed: bool = False
    bias: Tensor | None = None
    fusion: Fusion = PLAIN
    x: Tensor | None = None

    def __post_init__(self) -> None:
        self.values = self.values.contiguous()
        self.bias = None if self.bias is None else self.bias.contiguous()

    @property
    def block(self) -> tuple[int, int]:
        """The block's size along the summed and along the written dimension."""
        bo, bc = self.sizes[4:]
        return (bo, bc) if self.transposed else (bc, bo)

    def tile(self) -> Tile:
        """Return the tile to run with."""
        summed, written = self.block
        fused = self.fusion.name(self.transposed)
        key = functools.partial(
            launch_key,
            "input gradient" if self.transposed else "forward",
            self.src,
            self.dst,
            self.sizes,
            len(self.lists.slot),
            flat_geometry(self.geometry),
            fused,
        )
        images = (self.src, self.dst, self.x, self.fusion.residual)
        return choose(
            key,
            functools.partial(gather_tile, *kind(self.src), summed, written, fused != "plain"),
            power_of_two(written) == written and is_aligned(self.values),
            [image for image in images if image is not None],
        )

    def arguments(self, tile: Tile, sums: Tensor | None) -> dict[str, Any]:
        """Return what both kernels take, by name."""
        n, channels, _, width = self.dst.shape
        summed, written = self.block
        return {
            "bias": self.bias,
            "scale": self.fusion.scale,
            "shift": self.fusion.shift,
            "partial": sums,
            **self.lists._asdict(),
            "N": n,
            "HS": self.src.shape[2],
            "WS": self.src.shape[3],
            "WD": width,
            "C_SRC": self.src.shape[1],
            "C_DST": channels,
            "BLOCKS": -(-channels // written),
            "GEOMETRY": flat_geometry(self.geometry),
            "TRANSPOSED": self.transposed,
            "INPUT": self.fusion.input_kind,
            "PRECISION": precision(self.src),
            "BM": tile.bm,
            "BK": tile.bk,
            "BLOCK_RED": summed,
            "BLOCK_DST": written,
            **options(tile),
        }


def gather(call: GatherCall) -> TileSums | None:
    """Fill call.dst; return the tiles' sums where call.fusion has some written, else None."""
    check_size(call.src, call.dst)
    tile, sums, count = call.tile(), None, positions(call.dst.shape, 1)
    if call.fusion.writes_sums(call.transposed):
        shape = (-(-count // tile.bm), 2, call.dst.shape[1])
        sums = call.dst.new_empty(shape, dtype=torch.float32)
    (_gather_tma if tile.tma else _gather_pointers)(call, tile, sums)
    return None if sums is None else TileSums(sums, count)


def _gather_tma(call: GatherCall, tile: Tile, sums: Tensor | None) -> None:
    from sparse_kernels.triton.gather_kernels import gather_tma

    arguments, dst = call.arguments(tile, sums), call.dst
    written = arguments["BLOCK_DST"]
    box = [written, tile.bk] if call.transposed else [tile.bk, written]
    images = {"dst": dst, "x": call.x, "residual": call.fusion.residual}
    launch(
        dst,
        gather_tma,
        (arguments["BLOCKS"] * positions(dst.shape, 1) // tile.bm,),
        src=descriptor(call.src, [tile.bm, tile.bk]),
        values=descriptor(call.values, box),
        **{n: None if t is None else descriptor(t, [tile.bm, written]) for n, t in images.items()},
        **arguments,
    )


def _gather_pointers(call: GatherCall, tile: Tile, sums: Tensor | None) -> None:
    from sparse_kernels.triton.gather_kernels import gather_pointers

    arguments, src, dst = call.arguments(tile, sums), call.src, call.dst
    count, (summed, written) = positions(dst.shape, 1), call.block
    padded = power_of_two(written)
    ragged = src.shape[1] % summed or dst.shape[1] % written or padded != written
    launch(
        dst,
        gather_pointers,
        (arguments["BLOCKS"] * -(-count // tile.bm),),
        src=src,
        values=call.values,
        dst=dst,
        x=call.x,
        residual=call.fusion.residual,
        POSITIONS=count,
        HD=dst.shape[2],
        **pixel_strides("src", src),
        **pixel_strides("dst", dst),
        HWNC=is_hwnc(dst),
        RAGGED=bool(ragged),
        TILE_DST=padded,
        **arguments,
    )
