"""Strips: the passes of a convolution, by runs of pixels where slots and geometry allow them.

Slots are strips if the lists of a layout end in one more: the ids of the strips, a number for each
S neighbouring slots, which are the taps of a pair of channel blocks in one row of the kernel. All
else is as without it, and what has no kernel of runs goes a tap at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_kernels.index_tensors import IndexTensors, PassIndex, SlotIndex, slot_index
from sparse_kernels.triton.fusion import PLAIN, Fusion
from sparse_kernels.triton.gather import GatherCall, gather
from sparse_kernels.triton.run_gather import gather_by_runs, gather_run
from sparse_kernels.triton.run_tiles import WIDEST
from sparse_kernels.triton.run_weight_grad import shares_by_runs, weight_grad_run
from sparse_kernels.triton.sums import TileSums, added
from sparse_kernels.triton.weight_grad import shares

LISTS = len(IndexTensors._fields) - 3 + 2 * len(PassIndex._fields) + len(SlotIndex._fields)
Ints = Sequence[int]


def tap_lists(index: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the lists without that of the strips, if there is one."""
    return index[:LISTS]


def by_runs(index: Sequence[Tensor], sizes: Ints, geometry: Sequence[Ints]) -> bool:
    """Return whether slots are strips, in a convolution that there are runs for."""
    stride, _, dilation = geometry
    return len(index) > LISTS and {*stride, *dilation} == {1} and 1 < sizes[3] <= WIDEST


def gather_strips(call: GatherCall, index: Sequence[Tensor]) -> TileSums | None:
    """Do as `gather` does, by runs where that can be; index: the lists as one."""
    run = gather_run(call) if by_runs(index, call.sizes, call.geometry) else None
    return gather(call) if run is None else gather_by_runs(call, run)


def strip_shares(
    x: Tensor,
    dy: Tensor,
    index: Sequence[Tensor],
    sizes: Ints,
    geometry: Sequence[Ints],
    dtype: torch.dtype,
    fusion: Fusion = PLAIN,
) -> Tensor:
    """Do as `shares` does, by runs where that can be; index: the lists as one."""
    slots = slot_index(tap_lists(index), sizes)
    run = weight_grad_run(x, dy, sizes, fusion) if by_runs(index, sizes, geometry) else None
    if run is None:
        return shares(x, dy, slots, sizes, geometry, dtype, fusion)
    return shares_by_runs(x, dy, slots, sizes, geometry[1], dtype, run, fusion)


def strip_weight_grad(
    x: Tensor, dy: Tensor, index: Sequence[Tensor], sizes: Ints, geometry: Sequence[Ints]
) -> Tensor:
    """Do as `weight_grad` does, by runs where that can be; index: the lists as one."""
    gradient, _ = added(strip_shares(x, dy, index, sizes, geometry, x.dtype), x.dtype, None)
    return gradient
