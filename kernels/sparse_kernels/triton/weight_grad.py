"""Launcher of the weight gradient: pick variant and tile, share the positions, add the sums."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_kernels.index_tensors import SlotIndex
from sparse_kernels.layout import block_grid
from sparse_kernels.triton.fusion import PLAIN, Fusion
from sparse_kernels.triton.launch import (
    check_size,
    descriptor,
    flat_geometry,
    is_exact,
    is_hwnc,
    kind,
    launch,
    options,
    pixel_strides,
    precision,
    processors,
)
from sparse_kernels.triton.shares import count_shares, step_bytes
from sparse_kernels.triton.sums import added
from sparse_kernels.triton.tile_choice import choose, launch_key
from sparse_kernels.triton.tiles import power_of_two, weight_grad_tile


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
    from sparse_kernels.triton.weight_grad_kernels import weight_grad_pointers, weight_grad_tma

    check_size(x, dy)
    bo, bc = sizes[4:]
    (n, outputs, p, q), channels = dy.shape, x.shape[1]
    slots, padded = len(index.out_block), (power_of_two(bc), power_of_two(bo))
    flat, fused = flat_geometry(geometry), fusion.name(True)
    tile = choose(
        lambda: launch_key("weight gradient", x, dy, sizes, slots, flat, fused),
        functools.partial(weight_grad_tile, *kind(x), bc, bo, fused != "plain"),
        padded == (bc, bo),
        (x, dy),
    )
    loaded, flops = (bc + bo) * tile.bm * x.element_size(), 2 * tile.bm * bc * bo
    step = step_bytes(loaded, flops, x.element_size(), is_exact(x))
    splits = count_shares(slots, -(-n * p * q // tile.bm), step, bc * bo, processors(x))
    shape, sum_dtype = (slots, bc, bo), torch.float32 if splits > 1 else dtype
    partial = x.new_empty((splits, *shape) if splits > 1 else shape, dtype=sum_dtype)
    arguments = {
        "scale": fusion.scale,
        "shift": fusion.shift,
        "partial": partial,
        **index._asdict(),
        "N": n,
        "H": x.shape[2],
        "W": x.shape[3],
        "P": p,
        "Q": q,
        "C": channels,
        "OUT_BLOCKS": block_grid(sizes[:4], (bo, bc))[0],
        "SLOTS": slots,
        "SPLITS": splits,
        "GEOMETRY": flat,
        "INPUT": fusion.input_kind,
        "PRECISION": precision(x),
        "BM": tile.bm,
        "BC": bc,
        "BO": bo,
        **options(tile),
    }
    if tile.tma:
        boxes = {"x": descriptor(x, [tile.bm, bc]), "dy": descriptor(dy, [tile.bm, bo])}
        launch(x, weight_grad_tma, (slots * splits,), **boxes, **arguments)
    else:
        launch(
            x,
            weight_grad_pointers,
            (slots * splits,),
            x=x,
            dy=dy,
            POSITIONS=n * p * q,
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
