"""How many blocks an update of the topology has exchanged, and how many of the grown ones last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparse_engine.layers.base import SparseLayer


class BlockMoves:
    """Follows the blocks of a network from one update of its topology to the next."""

    def __init__(self, layers: Mapping[str, SparseLayer]) -> None:
        """Begin with the layers' present blocks."""
        self._layers = layers
        self._present = self._masks()
        self._grown = {name: torch.zeros_like(mask) for name, mask in self._present.items()}

    def after_update(self) -> dict[str, float]:
        """Return what the update that was just made has done; waits for a GPU.

        density: weights in active blocks / weights of the sparse layers.
        exchanged: share of the active blocks that are new.
        survival: share of the blocks grown by the update before that are still active; absent
            where that has grown none.
        """
        before, self._present = self._present, self._masks()
        lasting = {n: self._grown[n] & mask for n, mask in self._present.items()}
        numbers = {"lasting": _count(lasting), "grown": _count(self._grown)}
        self._grown = {n: mask & ~before[n] for n, mask in self._present.items()}
        layouts = [layer.layout for layer in self._layers.values()]
        weights = sum(math.prod(layout.shape) for layout in layouts)
        metrics = {
            "sparsity/density": sum(layout.active_weights for layout in layouts) / weights,
            "sparsity/exchanged": _count(self._grown) / max(1, _count(self._present)),
        }
        if numbers["grown"]:
            metrics["sparsity/survival"] = numbers["lasting"] / numbers["grown"]
        return metrics

    def state_dict(self) -> dict[str, Tensor]:
        """Return which blocks the last update has grown, by layer."""
        return {name: mask.clone() for name, mask in self._grown.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from state_dict(); the present blocks are the layers'."""
        for name, mask in self._grown.items():
            mask.copy_(state[name])

    def _masks(self) -> dict[str, Tensor]:
        return {name: layer.layout.mask() for name, layer in self._layers.items()}


def _count(masks: Mapping[str, Tensor]) -> int:
    return int(sum(mask.sum() for mask in masks.values()))
