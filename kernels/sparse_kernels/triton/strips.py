"""Strips: the passes of a convolution, by runs of pixels where slots and geometry allow them.

A strip is a pair of channel blocks in one row of the kernel. Its S taps are in S neighbouring
slots: strip g has slots g * S to g * S + S - 1. A layout whose slots are strips says so by its
lists, which end in as many more: those of the strips, as of a kernel one tap wide. All else is as
without them, and what has no kernel of runs goes a tap at a time.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sparse_kernels.index_tensors import forward_index, input_grad_index, slot_index, split
from sparse_kernels.triton.fusion import PLAIN, Fusion
from sparse_kernels.triton.gather import GatherCall, gather
from sparse_kernels.triton.run_gather import gather_by_runs, gather_run
from sparse_kernels.triton.run_tiles import WIDEST
from sparse_kernels.triton.run_weight_grad import shares_by_runs, weight_grad_run
from sparse_kernels.triton.sums import TileSums, added
from sparse_kernels.triton.weight_grad import shares

Ints = Sequence[int]
Lists = Sequence[Tensor]


def gather_strips(call: GatherCall, index: Lists) -> TileSums | None:
    """Do as `gather` does, by runs where that can be; index: all lists, as one."""
    strips = _strips(index, call.sizes, call.geometry)
    run = None if strips is None else gather_run(call)
    if strips is None or run is None:
        return gather(call)
    read = input_grad_index if call.transposed else forward_index
    return gather_by_runs(replace(call, lists=read(strips, _one_wide(call.sizes))), run)


def strip_shares(
    x: Tensor,
    dy: Tensor,
    index: Lists,
    sizes: Ints,
    geometry: Sequence[Ints],
    dtype: torch.dtype,
    fusion: Fusion = PLAIN,
) -> Tensor:
    """Do as `shares` does, by runs where that can be; index: all lists, as one."""
    strips = _strips(index, sizes, geometry)
    slots, run = slot_index(index, sizes), None
    if strips is not None:
        run = weight_grad_run(x, dy, len(slots.out_block), sizes, geometry, fusion)
    if strips is None or run is None:
        return shares(x, dy, slots, sizes, geometry, dtype, fusion)
    places = forward_index(strips, _one_wide(sizes))
    return shares_by_runs(x, dy, places, sizes, geometry[1], dtype, run, fusion)


def strip_weight_grad(
    x: Tensor, dy: Tensor, index: Lists, sizes: Ints, geometry: Sequence[Ints]
) -> Tensor:
    """Do as `weight_grad` does, by runs where that can be; index: all lists, as one."""
    gradient, _ = added(strip_shares(x, dy, index, sizes, geometry, x.dtype), x.dtype, None)
    return gradient


def _strips(index: Lists, sizes: Ints, geometry: Sequence[Ints]) -> Lists | None:
    """Return the lists of the strips, if there are some and runs for such a convolution."""
    stride, _, dilation = geometry
    has_runs = {*stride, *dilation} == {1} and 1 < sizes[3] <= WIDEST
    return split(index)[1] if has_runs else None


def _one_wide(sizes: Ints) -> list[int]:
    out_channels, in_channels, taps_h, _, *block = sizes
    return [out_channels, in_channels, taps_h, 1, *block]
