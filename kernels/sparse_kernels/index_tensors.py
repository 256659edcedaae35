"""The lists of blocks that the three passes of a layer follow, by name.

Legend as in layout.py. Operators take and save them as one flat list, for a schema knows no
classes: `IndexTensors.tensors` makes it and `IndexTensors.of` gives it its names back.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

Grid = tuple[int, int, int, int]


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
    """All lists of a layout.

    block_ids: id of each slot's block, int32 [Z]; OB * CB * R * S where a slot is unused.
    forward: blocks by output block; `reduce` is the input block.
    input_grad: blocks by input block; `reduce` is the output block.
    slots: blocks by slot.
    """

    block_ids: Tensor
    forward: PassIndex
    input_grad: PassIndex
    slots: SlotIndex

    @classmethod
    def build(cls, block_ids: Tensor, grid: Grid) -> IndexTensors:
        """Return the lists of integer ids [Z] in a grid [OB, CB, R, S]; larger means unused."""
        out_blocks, in_blocks, taps_h, taps_w = grid
        taps = taps_h * taps_w
        total = out_blocks * in_blocks * taps
        ids = block_ids.clamp(max=total).to(torch.int32)
        pair, tap = ids // taps, ids % taps
        slots = SlotIndex(pair // in_blocks, pair % in_blocks, tap // taps_w, tap % taps_w)
        by_input = (slots.in_block * out_blocks + slots.out_block) * taps + tap
        by_input = torch.where(ids < total, by_input, total)
        return cls(
            ids,
            _sorted_pass(ids, out_blocks, in_blocks * taps, slots, slots.in_block),
            _sorted_pass(by_input, in_blocks, out_blocks * taps, slots, slots.out_block),
            slots,
        )

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> IndexTensors:
        """Return the lists that `tensors` has made one of."""
        rest, length = iter(tensors), len(PassIndex._fields)
        return cls(
            next(rest),
            PassIndex(*islice(rest, length)),
            PassIndex(*islice(rest, length)),
            SlotIndex(*rest),
        )

    def tensors(self) -> list[Tensor]:
        """Return all lists as one, as operators take them."""
        return [self.block_ids, *self.forward, *self.input_grad, *self.slots]


def index_bytes(slots: int, grid: Grid) -> int:
    """Return the bytes of all lists of so many slots in a grid [OB, CB, R, S]."""
    out_blocks, in_blocks, *_ = grid
    passes, starts = 2 * (len(PassIndex._fields) - 1), out_blocks + 1 + in_blocks + 1
    return 4 * ((1 + passes + len(SlotIndex._fields)) * slots + starts)


def count_slots(tensors: Iterable[Tensor]) -> int:
    """Return Z, from the lists as one."""
    block_ids, *_ = tensors
    return block_ids.shape[0]


def _sorted_pass(
    keys: Tensor, groups: int, keys_per_group: int, slots: SlotIndex, reduce: Tensor
) -> PassIndex:
    ordered, slot = torch.sort(keys)
    edges = torch.arange(groups + 1, device=keys.device, dtype=torch.int32) * keys_per_group
    start = torch.searchsorted(ordered, edges, out_int32=True)
    return PassIndex(
        start, slot.to(torch.int32), reduce[slot], slots.tap_h[slot], slots.tap_w[slot]
    )
