"""Launcher of forward and input gradient for strips, by runs of pixels."""

import functools
from typing import Any

import torch
from torch import Tensor

from sparse_kernels.registration import positions
from sparse_kernels.triton.gather import GatherCall
from sparse_kernels.triton.launch import (
    check_size,
    descriptor,
    flat_geometry,
    is_aligned,
    is_hwnc,
    kind,
    launch,
    pixel_strides,
)
from sparse_kernels.triton.run_tiles import RunTile, run_gather_tile
from sparse_kernels.triton.sums import TileSums
from sparse_kernels.triton.tile_choice import choose_run, launch_key
from sparse_kernels.triton.tiles import power_of_two


def gather_run(call: GatherCall) -> RunTile | None:
    """Return what runs a pass of strips works with, None if a tap at a time is better."""
    summed, written = call.block
    statistics = call.fusion.writes_sums(call.transposed) and not call.transposed
    fused = call.fusion.name(call.transposed) != "plain"
    images = (call.src, call.dst, call.x, call.fusion.residual)
    name = "runs input gradient" if call.transposed else "runs forward"
    return choose_run(
        functools.partial(
            launch_key,
            name,
            call.src,
            call.dst,
            call.sizes,
            len(call.lists.slot),
            flat_geometry(call.geometry),
            call.fusion.name(call.transposed),
        ),
        functools.partial(run_gather_tile, *kind(call.src), summed, written, call.sizes[3], fused),
        call.dst.shape[3],
        power_of_two(written) == written and is_aligned(call.values),
        [image for image in images if image is not None],
        divides=statistics,
        # Tiles of a batch norm's statistics have a number of positions each but for the last one.
        allowed=lambda run: not statistics or _units(call.dst, run) % run.tile.bm == 0,
    )


def gather_by_runs(call: GatherCall, run: RunTile) -> TileSums | None:
    """Fill call.dst, as `gather` does."""
    check_size(call.src, call.dst)
    sums, tiles = None, -(-_units(call.dst, run) // run.tile.bm)
    if call.fusion.writes_sums(call.transposed):
        shape = (tiles * run.length, 2, call.dst.shape[1])
        sums = call.dst.new_empty(shape, dtype=torch.float32)
    (_launch_tma if run.tile.tma else _launch_pointers)(call, run, tiles, sums)
    return None if sums is None else TileSums(sums, positions(call.dst.shape, 1))


def _launch_tma(call: GatherCall, run: RunTile, tiles: int, sums: Tensor | None) -> None:
    from sparse_kernels.triton.run_gather_kernels import run_gather_tma

    arguments, dst, tile = _arguments(call, run, sums), call.dst, run.tile
    written = arguments["BLOCK_DST"]
    box = [written, tile.bk] if call.transposed else [tile.bk, written]
    images = {"dst": dst, "x": call.x, "residual": call.fusion.residual}
    launch(
        dst,
        run_gather_tma,
        (arguments["BLOCKS"] * tiles,),
        src=descriptor(call.src, [tile.bm, tile.bk]),
        values=descriptor(call.values, box),
        **{n: None if t is None else descriptor(t, [tile.bm, written]) for n, t in images.items()},
        **arguments,
    )


def _launch_pointers(call: GatherCall, run: RunTile, tiles: int, sums: Tensor | None) -> None:
    from sparse_kernels.triton.run_gather_kernels import run_gather_pointers

    arguments, src, dst = _arguments(call, run, sums), call.src, call.dst
    summed, written = call.block
    padded = power_of_two(written)
    ragged = src.shape[1] % summed or dst.shape[1] % written or padded != written
    launch(
        dst,
        run_gather_pointers,
        (arguments["BLOCKS"] * tiles,),
        src=src,
        values=call.values,
        dst=dst,
        x=call.x,
        residual=call.fusion.residual,
        UNITS=_units(dst, run),
        **pixel_strides("src", src),
        **pixel_strides("dst", dst),
        HWNC=is_hwnc(dst),
        RAGGED=bool(ragged),
        TILE_DST=padded,
        **arguments,
    )


def _arguments(call: GatherCall, run: RunTile, sums: Tensor | None) -> dict[str, Any]:
    """Return what both kernels take, by name."""
    arguments = call.arguments(run.tile, sums)
    del arguments["tap_w"], arguments["GEOMETRY"]
    _, _, height, width = call.dst.shape
    sizes = {"HD": height, "RUNS": -(-width // run.length), "P": run.length, "S": call.sizes[3]}
    return {**arguments, **sizes, "PADDING": tuple(call.geometry[1])}


def _units(dst: Tensor, run: RunTile) -> int:
    """Return how many runs an image batch has."""
    n, _, height, width = dst.shape
    return n * height * -(-width // run.length)
