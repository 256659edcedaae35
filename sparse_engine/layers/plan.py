"""LayerPlan: a layer's blocks and how many of them are active; its layouts are made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_engine.layers.blocks import DENSE, BlockChoice, layer_block, without_ragged_edge
from sparse_engine.layers.ids.block_check import SIGNS
from sparse_engine.layers.ids.random_groups import random_groups
from sparse_kernels import BlockLayout
from sparse_kernels.block_kinds import BlockKinds, Counts
from sparse_kernels.layout import Taps, block_grid, clamp_block, group_size
from sparse_kernels.operators.reference import block_norms


@dataclass(frozen=True)
class LayerPlan:
    """How many blocks of a layer's weight are active.

    shape: of the weight, (O, C[, R, S]); block: (BO, BC), clamped to it; total, active: blocks.
    taps: of a pair of channel blocks, "each" tap comes and goes by itself, those of a kernel's
        "row" as one, or "all".
    """

    name: str
    shape: tuple[int, ...]
    block: tuple[int, int]
    total: int
    active: int
    taps: Taps = "each"

    @classmethod
    def full(
        cls, name: str, shape: Sequence[int], block: BlockChoice, taps: Taps = "each"
    ) -> LayerPlan:
        """Return the plan of a layer with every block active; its block may be DENSE.

        A block that would leave a ragged edge is made smaller where that avoids it.
        """
        if block == DENSE:
            # One block that spans the weight: every layer keeps one.
            block, taps = (shape[0], shape[1]), "all"
        clamped = clamp_block(layer_block(block, shape), shape[0], shape[1])
        sizes = without_ragged_edge(clamped, shape)
        total = math.prod(block_grid(shape, sizes))
        return cls(name, tuple(shape), sizes, total, total, taps)

    @property
    def group(self) -> int:
        """Blocks that are active or absent together."""
        return group_size(self.shape, self.taps)

    @property
    def kinds(self) -> BlockKinds:
        """Which blocks are ragged, and how many real weights each holds."""
        return BlockKinds.of(self.shape, self.block, self.group)

    @property
    def groups_by_kind(self) -> Counts:
        """Active groups of each kind."""
        return self.kinds.split(self.active // self.group)

    @property
    def active_weights(self) -> int:
        """Real weights in active blocks."""
        return self.kinds.weights_of(self.groups_by_kind)

    @property
    def density(self) -> float:
        """Weights in active blocks / all weights; the padding of ragged blocks is no weight."""
        return self.active_weights / self.weights

    @property
    def weights(self) -> int:
        """Weights of the dense layer."""
        return math.prod(self.shape)

    @property
    def stored(self) -> int:
        """Values that the active blocks hold, padded edges included."""
        return self.active * math.prod(self.block)

    @property
    def index_bytes(self) -> int:
        """Bytes of what says which blocks these are on a CPU, as SparseLayer.index_bytes."""
        return 4 * (2 * self.active + SIGNS)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the layer's weight in fp32; the lists of a sparse layer are included."""
        return 4 * self.weights if self.is_dense else 4 * self.stored + self.index_bytes

    @property
    def is_dense(self) -> bool:
        """Whether every block is active: such a layer stays an ordinary module."""
        return self.active == self.total

    def at(self, density: float) -> LayerPlan:
        """Return the plan with whole groups nearest to a density, at least one.

        Raises:
            ValueError: the density is not in (0, 1].
        """
        if not 0 < density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, found {density}")
        return replace(self, active=max(1, round(self.kinds.groups_at(density))) * self.group)

    def layout(self, groups: Tensor) -> BlockLayout:
        """Return the layout of which these groups, ids in rising order, are active."""
        ids = groups[:, None] * self.group + torch.arange(self.group, device=groups.device)
        return BlockLayout(self.shape, self.block, ids.flatten(), taps=self.taps)

    def random(self, generator: torch.Generator | None = None) -> BlockLayout:
        """Return a layout of as many blocks, drawn within their kind so that no row and no column
        of blocks is empty, as far as they go round; on the CPU.
        """
        counts = self.groups_by_kind
        layout = self.layout(random_groups(self.kinds, counts, generator))
        layout.groups_by_kind = counts
        return layout

    def strongest(self, weight: Tensor) -> BlockLayout:
        """Return a layout of as many blocks of a dense weight, of each kind those with the largest
        L1 norm.

        On the meta device, where a weight has no numbers, the blocks are drawn at random.
        """
        if weight.is_meta:
            return self.random()
        layout = self.layout(torch.arange(self.active // self.group, device=weight.device))
        dense, counts = weight.detach().reshape(layout.shape), self.groups_by_kind
        layout.update_(strongest_blocks(dense, layout, counts))
        layout.groups_by_kind = counts
        return layout


def strongest_blocks(dense: Tensor, layout: BlockLayout, counts: Counts | None = None) -> Tensor:
    """Return ids [Z] of the blocks of [O, C, R, S] with the largest L1 norm.

    Args:
        dense: the weight.
        layout: its sizes count, and how many blocks of each kind are active.
        counts: groups of each kind in place of the layout's.
    """
    norms = block_norms(dense.float(), layout.sizes()).view(-1, layout.group).sum(1)
    best = layout.kinds.top(norms, counts or layout.groups_by_kind).sort().values
    best = layout.expand_groups(best)
    return F.pad(best, (0, layout.slots - layout.active), value=layout.total)


def with_spare_slots(layout: BlockLayout, headroom: float) -> BlockLayout:
    """Return a layout with unused slots more: `headroom` times its active blocks, rounded up."""
    spare = math.ceil(headroom * layout.active / layout.group) * layout.group
    slots = min(layout.total, layout.slots + spare)
    ids = F.pad(layout.block_ids, (0, slots - layout.slots), value=layout.total)
    wider = BlockLayout(layout.shape, layout.block, ids, layout.active, layout.taps)
    wider.groups_by_kind = layout.groups_by_kind
    return wider
