"""BlockLayout: which block of a weight lives in which slot.

Legend: O output channels, C input channels, R x S taps, BO x BC the block, OB = ceil(O / BO) and
CB = ceil(C / BC) the grid, Z slots. A block's id is its place in the row-major grid [OB, CB, R, S];
a slot without a block holds the id OB * CB * R * S and is on no list.

Blocks of one pair of channel blocks may be active or absent together: with taps="row" those of a
row of the kernel, a strip (T = S), with taps="all" those of all taps (T = R * S). Slots then come
in groups of T, and slot g * T + t holds block i * T + t, where i is the id of the group in slots g.
A strip's id is its pair's number * R + its row.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sparse_kernels.block_kinds import BlockKinds, Counts
from sparse_kernels.index_tensors import Grid, SlotIndex, make_lists, slot_index

Taps = Literal["each", "row", "all"]
TAPS: tuple[Taps, ...] = get_args(Taps)


def clamp_block(block: Sequence[int], out_channels: int, in_channels: int) -> tuple[int, int]:
    """Return (BO, BC) no wider than the layer's channels rounded up to a multiple of 16."""
    sizes = tuple(block)
    if len(sizes) != 2 or not all(isinstance(b, int) and b > 0 for b in sizes):
        raise ValueError(f"block must be two positive integers (BO, BC), found {block!r}")
    bo, bc = sizes
    return min(bo, -(-out_channels // 16) * 16), min(bc, -(-in_channels // 16) * 16)


class BlockLayout:
    """The blocks of a weight [O, C, R, S] that are stored, and in which of Z slots.

    Topology updates write the index lists in place, so that addresses and shapes stay what
    compiled code, CUDA graphs and optimizer state know; everything is tensor arithmetic on the
    layout's device, with no synchronisation. `values` [Z, BC, BO] belongs to the caller.
    """

    _by_kind: Counts | None = None

    def __init__(
        self,
        shape: Sequence[int],
        block: Sequence[int],
        block_ids: Tensor,
        active: int | None = None,
        taps: Taps = "each",
    ) -> None:
        """Make a layout from ids.

        Args:
            shape: (O, C, R, S), or (O, C) for a linear layer.
            block: (BO, BC), clamped to the channels rounded up to 16.
            block_ids: integer [Z], distinct ids in [0, OB * CB * R * S); larger means unused.
            active: number of used slots, Z unless said (kept on the host, to spare a sync).
            taps: "each", "row" or "all"; with the last two, ids are whole groups (validate()
                checks that).
        """
        self.shape = _four(shape)
        self.taps, self.group = taps, group_size(shape, taps)
        self.block = clamp_block(block, self.shape[0], self.shape[1])
        if block_ids.ndim != 1 or block_ids.numel() == 0:
            raise ValueError(
                f"block_ids must be [Z] with Z at least 1, found shape {list(block_ids.shape)}"
            )
        self.active = self._whole(len(block_ids) if active is None else active)
        self._whole(len(block_ids))
        self._lists = self._make_lists(block_ids)

    @classmethod
    def from_mask(
        cls, mask: Tensor, shape: Sequence[int], block: Sequence[int], taps: Taps = "each"
    ) -> BlockLayout:
        """Make a layout whose slots hold the true blocks of `mask` in order.

        Args:
            mask: bool [OB, CB, R, S], or [OB, CB] for a linear layer, with a true block at least.
            shape: (O, C, R, S) or (O, C).
            block, taps: as above; the blocks of a group are all true or all false.
        """
        grid = block_grid(shape, block)
        wanted = grid if len(shape) == 4 else grid[:2]
        if mask.dtype != torch.bool or tuple(mask.shape) not in (grid, wanted):
            raise ValueError(
                f"mask must be bool {list(wanted)} for a weight {list(shape)}, "
                f"found {mask.dtype} {list(mask.shape)}"
            )
        groups = mask.reshape(-1, group_size(shape, taps))
        if not groups.all(1).equal(groups.any(1)):
            what = "a strip" if taps == "row" else "a pair"
            raise ValueError(
                f"mask has {what} with some of its taps; with taps='{taps}' it is all or none"
            )
        return cls(shape, block, mask.flatten().nonzero().flatten(), taps=taps)

    @property
    def grid(self) -> Grid:
        """Blocks along each dimension, (OB, CB, R, S)."""
        return block_grid(self.shape, self.block)

    @property
    def total(self) -> int:
        """Blocks of the dense weight, OB * CB * R * S."""
        return math.prod(self.grid)

    @property
    def slots(self) -> int:
        """Z, the number of slots."""
        return len(self.block_ids)

    @property
    def group_ids(self) -> Tensor:
        """Id of each group, int32 [Z / T]; `total` / T where it is unused."""
        if self.group == 1:
            return self.block_ids
        return self.block_ids[:: self.group] // self.group

    @property
    def density(self) -> float:
        """Active blocks / all blocks, which decides speed; ragged blocks count as others do."""
        return self.active / self.total

    @property
    def kinds(self) -> BlockKinds:
        """Which blocks are ragged, and how many real weights each holds."""
        return BlockKinds.of(self.shape, self.block, self.group)

    @property
    def groups_by_kind(self) -> Counts:
        """Active groups of each kind.

        Whoever gives the layout other blocks can set it; otherwise it is counted when it is next
        asked for, which waits for the device if there are several kinds.
        """
        if len(self.kinds.groups) == 1:
            return (self.active // self.group,)
        if self._by_kind is None:
            self._by_kind = self.kinds.count(self.group_ids)
        return self._by_kind

    @groups_by_kind.setter
    def groups_by_kind(self, counts: Counts) -> None:
        if sum(counts) * self.group != self.active:
            raise ValueError(f"{counts} groups by kind are not the {self.active} active blocks")
        self._by_kind = tuple(counts)

    @property
    def active_weights(self) -> int:
        """Real weights in active blocks."""
        return self.kinds.weights_of(self.groups_by_kind)

    @property
    def device(self) -> torch.device:
        """Where the index lists are."""
        return self.block_ids.device

    @property
    def block_ids(self) -> Tensor:
        """Id of each slot's block, int32 [Z]; `total` where a slot is unused."""
        return self._lists[0]

    @property
    def slot_index(self) -> SlotIndex:
        """Where each slot's block lies; made when asked for, on a CPU."""
        return slot_index(self._lists, self.sizes())

    def tensors(self) -> list[Tensor]:
        """The lists as the custom ops take them (index_tensors.py)."""
        return list(self._lists)

    def sizes(self) -> list[int]:
        """(O, C, R, S, BO, BC), as the custom ops take them."""
        return [*self.shape, *self.block]

    def mask(self) -> Tensor:
        """Return which blocks are active, bool [OB, CB, R, S]."""
        flat = torch.zeros(self.total + 1, dtype=torch.bool, device=self.device)
        flat.index_fill_(0, self.block_ids.long(), True)
        return flat[:-1].view(self.grid)

    def outside(self) -> Tensor | None:
        """Return which values lie past the weight's edge or in unused slots, bool [Z, BC, BO].

        None where all are inside.
        """
        (bo, bc), (out_channels, in_channels, *_) = self.block, self.shape
        if not (out_channels % bo or in_channels % bc or self.active < self.slots):
            return None
        slots = self.slot_index
        rows = slots.out_block[:, None] * bo + torch.arange(bo, device=self.device)
        columns = slots.in_block[:, None] * bc + torch.arange(bc, device=self.device)
        return (rows >= out_channels)[:, None, :] | (columns >= in_channels)[:, :, None]

    def update_(self, block_ids: Tensor, active: int | None = None) -> None:
        """Give the slots other blocks: ids [Z] on the same device, `active` (as before) used."""
        if block_ids.shape != self.block_ids.shape:
            raise ValueError(
                f"an update must keep the {self.slots} slots, found ids {list(block_ids.shape)}"
            )
        self.active = self.active if active is None else self._whole(active)
        self._by_kind = None
        for kept, changed in zip(self._lists, self._make_lists(block_ids), strict=True):
            kept.copy_(changed)

    def to(self, device: torch.device | str) -> BlockLayout:
        """Return this layout on another device, or itself when it is there."""
        if self.device == torch.device(device):
            return self
        moved = copy.copy(self)
        moved._lists = self._make_lists(self.block_ids.to(device))
        return moved

    def __setstate__(self, state: dict[str, Any]) -> None:
        index = state.pop("index", None)  # as pickled when all lists were kept on a CPU, too
        self.__dict__.update(state)
        if index is not None:
            self._lists = self._make_lists(index.block_ids)

    def validate(self, block_ids: Tensor) -> int:
        """Return how many blocks ids [Z] make active; ValueError for ids that do not fit.

        For ids read from files: it synchronises, so updates do not call it.
        """
        if block_ids.shape != self.block_ids.shape or block_ids.is_floating_point():
            found = f"{block_ids.dtype} {list(block_ids.shape)}"
            raise ValueError(f"block ids should be integer [{self.slots}], found {found}")
        if block_ids.is_meta:
            raise ValueError("block ids on the meta device have no numbers")
        ids = block_ids.cpu().long()
        used = ids[ids < self.total]
        if not 0 <= ids.min() <= ids.max() <= self.total:
            found = f"{int(ids.min())} to {int(ids.max())}"
            raise ValueError(f"block ids should be from 0 to {self.total}, found {found}")
        if not len(used):
            raise ValueError("a block at least should be active, found none")
        if len(used.unique()) != len(used):
            raise ValueError("block ids should be distinct, found a block in two slots")
        groups = self.expand_groups(ids[:: self.group] // self.group)
        if not ids.equal(groups.clamp(max=self.total)):
            raise ValueError(
                f"block ids should be whole groups of {self.group} taps in order, as "
                f"taps='{self.taps}' says; a layer with taps='each' takes any blocks"
            )
        return len(used)

    def expand_groups(self, numbers: Tensor) -> Tensor:
        """Return [G * T], the slots of groups of slots [G], or the block ids of group ids [G]."""
        if self.group == 1:
            return numbers
        taps = torch.arange(self.group, dtype=numbers.dtype, device=numbers.device)
        return (numbers[:, None] * self.group + taps).flatten()

    def _make_lists(self, block_ids: Tensor) -> list[Tensor]:
        return make_lists(block_ids, self.grid, strips=self.group > 1)

    def _whole(self, count: int) -> int:
        if count % self.group:
            raise ValueError(
                f"taps='{self.taps}' needs groups of {self.group} slots, found {count}"
            )
        return count

    def __repr__(self) -> str:
        taps = f", taps='{self.taps}'" if self.group > 1 else ""
        return (
            f"BlockLayout(shape={self.shape}, block={self.block}{taps}, active={self.active} "
            f"of {self.total}, slots={self.slots}, device={self.device})"
        )


def block_grid(shape: Sequence[int], block: Sequence[int]) -> tuple[int, int, int, int]:
    """Return (OB, CB, R, S) of a weight (O, C[, R, S]) cut into blocks (BO, BC)."""
    out_channels, in_channels, taps_h, taps_w = _four(shape)
    bo, bc = clamp_block(block, out_channels, in_channels)
    return -(-out_channels // bo), -(-in_channels // bc), taps_h, taps_w


def group_size(shape: Sequence[int], taps: Taps) -> int:
    """Return T, the blocks that are active or absent together.

    1 with taps="each", S with "row", R * S with "all".
    """
    if taps not in TAPS:
        raise ValueError(f"taps must be 'each', 'row' or 'all', found {taps!r}")
    *_, taps_h, taps_w = _four(shape)
    return {"each": 1, "row": taps_w, "all": taps_h * taps_w}[taps]


def _four(shape: Sequence[int]) -> tuple[int, int, int, int]:
    sizes = tuple(int(n) for n in shape)
    if len(sizes) not in (2, 4) or min(sizes) < 1:
        raise ValueError(f"a weight has sizes (O, C) or (O, C, R, S), all positive; found {sizes}")
    return sizes if len(sizes) == 4 else (*sizes, 1, 1)
