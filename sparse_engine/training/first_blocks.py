"""What has become of the blocks that sparse layers began with: the rows of blocks.csv."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_engine.layers.base import SparseLayer
from sparse_engine.runs.epoch_rows import BlockRow
from sparse_engine.schema import check_like, demand
from sparse_engine.sparsity.drop_and_grow import block_strengths, by_group
from sparse_engine.sparsity.topology import Topology


class FirstBlocks:
    """Which blocks each sparse layer of a member began with.

    A layer begins with its member, or with the phase before which pruning has made it sparse.
    """

    def __init__(self) -> None:
        """Know of no layer yet."""
        self._first: dict[str, Tensor] | None = {}

    def begin(self) -> None:
        """Forget all layers: a member begins, or channels have another order."""
        self._first = {}

    def watch(self, layers: Mapping[str, SparseLayer]) -> None:
        """Take the present blocks of layers that are new for their first ones."""
        if self._first is not None:
            known = self._first
            self._first = {
                name: known[name] if name in known else _packed(layer.layout.mask().cpu())
                for name, layer in layers.items()
            }

    def rows(self, step: int, topology: Topology) -> Iterator[BlockRow]:
        """Yield what is left in each layer at a step; waits for a GPU.

        Nothing for the rest of a member whose first blocks an earlier version has not noted.
        """
        for name, layer in topology.layers.items():
            first = (self._first or {}).get(name)
            if first is not None:
                active = layer.layout.mask().cpu()
                kept = _count(first & _packed(active)) / _count(first)
                explored = int(topology.ever_active[name].sum()) / layer.layout.total
                weaker, empty = _weaker_half(layer), _empty_outputs(layer, active)
                yield BlockRow(step, name, layer.density, kept, explored, weaker, empty)

    def state_dict(self) -> dict[str, Tensor] | None:
        """Return what a resumed run needs."""
        return None if self._first is None else dict(self._first)

    def check_state(self, state: Any, layers: Mapping[str, SparseLayer]) -> None:
        """Raise InputError unless a state is of these layers, or None as of an earlier version."""
        demand(state is None or isinstance(state, Mapping), "first_blocks", "an object", state)
        state = state or {}
        for name in state.keys() & layers.keys():
            like = torch.empty(-(-layers[name].layout.total // 8), dtype=torch.uint8)
            check_like(state[name], like, f"first_blocks.{name}")
            demand(bool(state[name].any()), f"first_blocks.{name}", "a block at least")

    def load_state_dict(self, state: Mapping[str, Tensor] | None) -> None:
        """Continue from state_dict()."""
        self._first = None if state is None else dict(state)


def _packed(active: Tensor) -> Tensor:
    """Return which blocks are active, a bit a block: uint8 [blocks / 8], of bools on the CPU."""
    return torch.from_numpy(np.packbits(active.flatten().numpy()))


@torch.no_grad()
def _weaker_half(layer: SparseLayer) -> float | None:
    """Return the weaker half's share of the strengths of all active blocks (see BlockRow).

    Blocks that updates move together (taps="row", taps="all") count as one.
    """
    layout = layer.layout
    strengths = by_group(block_strengths(layer), layout)
    strengths = strengths[layout.group_ids < layout.total // layout.group].sort().values
    whole, half = float(strengths.sum()), len(strengths) // 2
    return float(strengths[:half].sum()) / whole if whole and half else None


def _empty_outputs(layer: SparseLayer, active: Tensor) -> float:
    """Return the share of output channels in whose row of blocks [OB, CB, R, S] none is active."""
    outputs, (height, _) = layer.layout.shape[0], layer.layout.block
    empty = ~active.flatten(1).any(1)
    return float(empty.repeat_interleave(height)[:outputs].float().mean())


def _count(bits: Tensor) -> int:
    return int(np.unpackbits(bits.numpy()).sum())
