"""The lists of blocks that the three passes of a layer follow.

Legend as in layout.py. Operators take and save them as one flat list, for a schema knows no
classes. On a GPU it holds what the kernels read, sorted and taken apart when blocks change. On a
CPU it holds the ids alone, four bytes a slot: native kernels sort them as they read them, which
costs little beside their products, and lists of single weights would take as much memory as a
dense network. `forward_index`, `input_grad_index` and `slot_index` give either its names back.

Where slots are strips (S neighbouring slots hold the taps of a pair in one row of the kernel), the
lists of the strips come after those of the slots, as of a kernel one tap wide: strip g has slots
g * S to g * S + S - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

Grid = tuple[int, int, int, int]
LARGEST_INT16 = 2**15 - 1


class PassIndex(NamedTuple):
    """Blocks sorted by the dimension a pass writes: its block `g` has entries start[g] to
    start[g + 1].

    start int32 [G + 1]; slot, reduce, tap_h and tap_w int32 [Z], where `reduce` is the block's
    index along the dimension that is summed over. Entries past start[G] mean nothing.
    """

    start: Tensor
    slot: Tensor
    reduce: Tensor
    tap_h: Tensor
    tap_w: Tensor


class SlotIndex(NamedTuple):
    """Where each slot's block lies, int32 [Z] each; an unused slot has out_block = OB."""

    out_block: Tensor
    in_block: Tensor
    tap_h: Tensor
    tap_w: Tensor


class IndexTensors(NamedTuple):
    """All lists of a layout on a GPU.

    block_ids: id of each slot's block, int32 [Z]; OB * CB * R * S where a slot is unused.
    forward: blocks by output block; `reduce` is the input block.
    input_grad: blocks by input block; `reduce` is the output block.
    slots: blocks by slot.
    """

    block_ids: Tensor
    forward: PassIndex
    input_grad: PassIndex
    slots: SlotIndex


def make_lists(block_ids: Tensor, grid: Grid, strips: bool = False) -> list[Tensor]:
    """Return the lists of integer ids [Z] in a grid [OB, CB, R, S]; larger means unused.

    strips: slots are strips, whose lists come after on a GPU.
    """
    ids = block_ids.clamp(max=math.prod(grid)).to(torch.int32)
    if ids.device.type == "cpu":
        return [ids]
    lists = all_lists(ids, grid)
    return lists + strip_lists(ids, grid) if strips and grid[3] > 1 else lists


def all_lists(ids: Tensor, grid: Grid) -> list[Tensor]:
    """Return what a GPU's kernels read of ids int32 [Z] in a grid [OB, CB, R, S]."""
    slots = _slot_index(ids, grid)
    by_output = _by_output(ids, grid, slots)
    return [ids, *by_output, *_by_input(ids, grid, slots), *slots]


def strip_lists(block_ids: Tensor, grid: Grid) -> list[Tensor]:
    """Return the lists of the strips in slots with these ids [Z].

    int16 where all numbers fit, but for the ids of the strips, which come first.
    """
    out_blocks, in_blocks, taps_h, taps_w = grid
    strips = make_lists(block_ids[::taps_w] // taps_w, (out_blocks, in_blocks, taps_h, 1))
    small = max(len(strips[0]), out_blocks, in_blocks, taps_h) <= LARGEST_INT16
    return [strips[0], *(t.to(torch.int16) if small else t for t in strips[1:])]


def split(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor] | None]:
    """Return the lists of the slots, and those of the strips if there are any."""
    half, odd = divmod(len(tensors), 2)  # either kind is one list, or fifteen
    return (tensors, None) if odd else (tensors[:half], tensors[half:])


def forward_index(tensors: Sequence[Tensor], sizes: Sequence[int]) -> PassIndex:
    """Return the blocks by output block, from the lists as one and BlockLayout.sizes()."""
    tensors, _ = split(tensors)
    if len(tensors) > 1:
        return _all(tensors).forward
    (ids,), grid = tensors, grid_of(sizes)
    return _by_output(ids, grid, _slot_index(ids, grid))


def input_grad_index(tensors: Sequence[Tensor], sizes: Sequence[int]) -> PassIndex:
    """Return the blocks by input block, from the lists as one and BlockLayout.sizes()."""
    tensors, _ = split(tensors)
    if len(tensors) > 1:
        return _all(tensors).input_grad
    (ids,), grid = tensors, grid_of(sizes)
    return _by_input(ids, grid, _slot_index(ids, grid))


def slot_index(tensors: Sequence[Tensor], sizes: Sequence[int]) -> SlotIndex:
    """Return where each slot's block lies, from the lists as one and BlockLayout.sizes()."""
    tensors, _ = split(tensors)
    return _all(tensors).slots if len(tensors) > 1 else _slot_index(tensors[0], grid_of(sizes))


def grid_of(sizes: Sequence[int]) -> Grid:
    """Return [OB, CB, R, S] of BlockLayout.sizes()."""
    out_channels, in_channels, taps_h, taps_w, bo, bc = sizes
    return -(-out_channels // bo), -(-in_channels // bc), taps_h, taps_w


def adjacent_ids(tensors: Sequence[Tensor]) -> Tensor:
    """Return the ids int32 [Z] that native code reads, from the lists as one; ValueError if not."""
    ids = tensors[0]
    if ids.dtype != torch.int32 or ids.ndim != 1 or not ids.is_contiguous():
        raise ValueError(f"block ids should be int32 [Z], found {ids.dtype} {list(ids.shape)}")
    return ids


def count_slots(tensors: Sequence[Tensor]) -> int:
    """Return Z, from the lists as one."""
    return tensors[0].shape[0]


def _all(tensors: Sequence[Tensor]) -> IndexTensors:
    rest, length = iter(tensors), len(PassIndex._fields)
    return IndexTensors(
        next(rest),
        PassIndex(*islice(rest, length)),
        PassIndex(*islice(rest, length)),
        SlotIndex(*rest),
    )


def _slot_index(ids: Tensor, grid: Grid) -> SlotIndex:
    _, in_blocks, taps_h, taps_w = grid
    pair, tap = ids // (taps_h * taps_w), ids % (taps_h * taps_w)
    return SlotIndex(pair // in_blocks, pair % in_blocks, tap // taps_w, tap % taps_w)


def _by_output(ids: Tensor, grid: Grid, slots: SlotIndex) -> PassIndex:
    out_blocks, in_blocks, taps_h, taps_w = grid
    return _sorted_pass(ids, out_blocks, in_blocks * taps_h * taps_w, slots, slots.in_block)


def _by_input(ids: Tensor, grid: Grid, slots: SlotIndex) -> PassIndex:
    out_blocks, in_blocks, taps_h, taps_w = grid
    taps, total = taps_h * taps_w, math.prod(grid)
    keys = (slots.in_block * out_blocks + slots.out_block) * taps + ids % taps
    keys = torch.where(ids < total, keys, total)
    return _sorted_pass(keys, in_blocks, out_blocks * taps, slots, slots.out_block)


def _sorted_pass(
    keys: Tensor, groups: int, keys_per_group: int, slots: SlotIndex, reduce: Tensor
) -> PassIndex:
    ordered, slot = torch.sort(keys)
    edges = torch.arange(groups + 1, device=keys.device, dtype=torch.int32) * keys_per_group
    start = torch.searchsorted(ordered, edges, out_int32=True)
    return PassIndex(
        start, slot.to(torch.int32), reduce[slot], slots.tap_h[slot], slots.tap_w[slot]
    )
