"""Launcher of the weight gradient of strips, by runs of pixels."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_kernels.index_tensors import PassIndex
from sparse_kernels.layout import block_grid
from sparse_kernels.triton.fusion import PLAIN, Fusion
from sparse_kernels.triton.launch import (
    check_size,
    descriptor,
    flat_geometry,
    is_hwnc,
    kind,
    launch,
    options,
    pixel_strides,
    precision,
    processors,
)
from sparse_kernels.triton.run_tiles import RunTile, run_weight_grad_tile
from sparse_kernels.triton.shares import count_shares, step_bytes
from sparse_kernels.triton.tile_choice import choose_run, launch_key
from sparse_kernels.triton.tiles import power_of_two

# Output blocks among which a program looks for its strips: one number for all usual layers.
BLOCKS = 128


def weight_grad_run(
    x: Tensor,
    dy: Tensor,
    slots: int,
    sizes: Sequence[int],
    geometry: Sequence[Sequence[int]],
    fusion: Fusion = PLAIN,
) -> RunTile | None:
    """Return what runs a pass of strips works with, None if a tap at a time is better."""
    (bo, bc), fused, flat = sizes[4:], fusion.name(True), flat_geometry(geometry)
    return choose_run(
        lambda: launch_key("runs weight gradient", x, dy, sizes, slots, flat, fused),
        functools.partial(run_weight_grad_tile, *kind(x), bc, bo, sizes[3], fused != "plain"),
        dy.shape[3],
        (power_of_two(bc), power_of_two(bo)) == (bc, bo),
        (x, dy),
    )


def shares_by_runs(
    x: Tensor,
    dy: Tensor,
    index: PassIndex,
    sizes: Sequence[int],
    padding: Sequence[int],
    dtype: torch.dtype,
    run: RunTile,
    fusion: Fusion = PLAIN,
) -> Tensor:
    """Return dvalues by shares of the runs, as `shares` does by those of the positions.

    index: of the strips by output block.
    """
    from sparse_kernels.triton import run_weight_grad_kernels as kernels

    check_size(x, dy)
    (taps, bo, bc), tile = sizes[3:], run.tile
    (n, outputs, height, width), channels = dy.shape, x.shape[1]
    strips, padded = len(index.slot), (power_of_two(bc), power_of_two(bo))
    out_blocks, runs = block_grid(sizes[:4], (bo, bc))[0], -(-width // run.length)
    groups, units = count_groups(strips, out_blocks, run.strips), n * height * runs
    programs = groups * -(-taps // run.taps)
    splits = _count_shares(run, programs, units, (bc, bo), x)
    shape, sum_dtype = (strips * taps, bc, bo), torch.float32 if splits > 1 else dtype
    partial = x.new_empty((splits, *shape) if splits > 1 else shape, dtype=sum_dtype)
    arguments = {
        "scale": fusion.scale,
        "shift": fusion.shift,
        "partial": partial,
        "start": index.start,
        "slot": index.slot,
        "reduce": index.reduce,
        "tap_h": index.tap_h,
        "N": n,
        "H": x.shape[2],
        "W": x.shape[3],
        "HD": height,
        "WD": width,
        "RUNS": runs,
        "C": channels,
        "OUT_BLOCKS": out_blocks,
        "STRIPS": strips,
        "GROUPS": groups,
        "SPLITS": splits,
        "P": run.length,
        "S": taps,
        "TAPS": run.taps,
        "G": run.strips,
        "BLOCKS": max(BLOCKS, power_of_two(out_blocks + 1)),
        "PADDING": tuple(padding),
        "INPUT": fusion.input_kind,
        "PRECISION": precision(x),
        "BM": tile.bm,
        "BC": bc,
        "BO": bo,
        **options(tile),
    }
    if tile.tma:
        boxes = {"x": descriptor(x, [tile.bm, bc]), "dy": descriptor(dy, [tile.bm, bo])}
        launch(x, kernels.run_weight_grad_tma, (programs * splits,), **boxes, **arguments)
    else:
        launch(
            x,
            kernels.run_weight_grad_pointers,
            (programs * splits,),
            x=x,
            dy=dy,
            UNITS=units,
            C_OUT=outputs,
            **pixel_strides("x", x),
            **pixel_strides("dy", dy),
            HWNC=is_hwnc(dy),
            RAGGED=bool(channels % bc or outputs % bo or padded != (bc, bo)),
            TILE_C=padded[0],
            TILE_O=padded[1],
            **arguments,
        )
    return partial


def count_groups(strips: int, out_blocks: int, together: int) -> int:
    """Return the most groups of `together` strips, or fewer, that output blocks can have.

    Those that are not used count as of an output block more.
    """
    return (strips + (out_blocks + 1) * (together - 1)) // together


def _count_shares(
    run: RunTile, programs: int, units: int, block: tuple[int, int], x: Tensor
) -> int:
    (bc, bo), bm, size = block, run.tile.bm, x.element_size()
    loads = run.strips * bc * (run.length + run.taps - 1) + bo * run.length
    sums = run.strips * run.taps * bc * bo
    step = step_bytes(size * bm * loads, 2 * run.length * bm * sums, size, False)
    return count_shares(programs, -(-units // bm), step, sums, processors(x))
