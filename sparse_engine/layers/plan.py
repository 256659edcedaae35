"""LayerPlan: a layer's blocks and how many of them are active; its layouts are made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_engine.layers.blocks import DENSE, BlockChoice, layer_block
from sparse_kernels import BlockLayout
from sparse_kernels.layout import block_grid, clamp_block, group_size
from sparse_kernels.operators.reference import block_norms


@dataclass(frozen=True)
class LayerPlan:
    """How many blocks of a layer's weight are active.

    shape: of the weight, (O, C[, R, S]); block: (BO, BC), clamped to it; total, active: blocks.
    taps: "each" tap of a pair of channel blocks is a block by itself, or "all" come and go as one.
    """

    name: str
    shape: tuple[int, ...]
    block: tuple[int, int]
    total: int
    active: int
    taps: str = "each"

    @classmethod
    def full(
        cls, name: str, shape: Sequence[int], block: BlockChoice, taps: str = "each"
    ) -> LayerPlan:
        """Return the plan of a layer with every block active; its block may be DENSE."""
        if block == DENSE:
            # One block that spans the weight: every layer keeps one.
            block, taps = (shape[0], shape[1]), "all"
        sizes = clamp_block(layer_block(block, shape), shape[0], shape[1])
        total = math.prod(block_grid(shape, sizes))
        return cls(name, tuple(shape), sizes, total, total, taps)

    @property
    def group(self) -> int:
        """Blocks that are active or absent together."""
        return group_size(self.shape, self.taps)

    @property
    def density(self) -> float:
        """Active blocks / all blocks."""
        return self.active / self.total

    @property
    def weights(self) -> int:
        """Weights of the dense layer."""
        return math.prod(self.shape)

    @property
    def stored(self) -> int:
        """Values that the active blocks hold, padded edges included."""
        return self.active * math.prod(self.block)

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
        groups = max(1, round(density * (self.total // self.group)))
        return replace(self, active=groups * self.group)

    def layout(self, groups: Tensor) -> BlockLayout:
        """Return the layout of which these groups, ids in rising order, are active."""
        ids = groups[:, None] * self.group + torch.arange(self.group, device=groups.device)
        return BlockLayout(self.shape, self.block, ids.flatten(), taps=self.taps)

    def random(self, generator: torch.Generator | None = None) -> BlockLayout:
        """Return a layout of as many uniformly drawn blocks, on the CPU."""
        device = generator.device if generator is not None else torch.device("cpu")
        order = torch.randperm(self.total // self.group, generator=generator, device=device)
        return self.layout(order[: self.active // self.group].cpu().sort().values)

    def strongest(self, weight: Tensor) -> BlockLayout:
        """Return a layout of as many blocks of a dense weight, those with the largest L1 norm.

        On the meta device, where a weight has no numbers, the blocks are drawn at random.
        """
        if weight.is_meta:
            return self.random()
        layout = self.layout(torch.arange(self.active // self.group, device=weight.device))
        layout.update_(strongest_blocks(weight.detach().reshape(layout.shape), layout))
        return layout


def strongest_blocks(dense: Tensor, layout: BlockLayout) -> Tensor:
    """Return ids [Z] of the layout.active blocks of [O, C, R, S] with the largest L1 norm."""
    norms = block_norms(dense.float(), layout.sizes()).view(-1, layout.group).sum(1)
    best = norms.topk(layout.active // layout.group).indices.sort().values
    best = layout.expand_groups(best)
    return F.pad(best, (0, layout.slots - layout.active), value=layout.total)
