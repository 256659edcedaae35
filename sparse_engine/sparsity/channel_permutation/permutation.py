"""A network's channels in another order: weights, norms, optimizer state, and states kept aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.optimizer_state import state_tensors
from sparse_engine.layers.surgery import change_layout, replace_modules
from sparse_engine.sparsity.channel_permutation.groups import ChannelGroup


@dataclass(frozen=True)
class ChannelPermutation:
    """Where the entries of tensors come from when channels are permuted.

    moves: for each tensor of the dense state dict that changes, dimensions and, on the CPU, the
        former place of each entry along them.
    """

    moves: Mapping[str, Sequence[tuple[int, Tensor]]]

    @classmethod
    def of(cls, groups: Sequence[ChannelGroup], orders: Sequence[Tensor]) -> ChannelPermutation:
        """Return what puts channel orders[g][p] of each group in its place p."""
        moves: dict[str, list[tuple[int, Tensor]]] = {}
        for group, order in zip(groups, orders, strict=True):
            if order.equal(torch.arange(len(order))):
                continue
            for axis in group.axes:
                places = entries(order, axis.repeat)
                moves.setdefault(axis.tensor, []).append((axis.dimension, places))
        return cls(moves)

    @torch.no_grad()
    def apply_(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Permute a network's channels in place; it computes the same as before within rounding.

        Sparse layers that it changes become ordinary modules, since blocks do not survive it: the
        next pruning makes them sparse again. Gradients and the optimizer's state of the parameters
        move along.
        """
        names = {name.rpartition(".")[0] for name in self.moves}
        layers = {n: m for n, m in model.named_modules() if n in names}
        full = {n: change_layout(m, None) for n, m in layers.items() if isinstance(m, SparseLayer)}
        replace_modules(model, full, optimizer)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name in self.moves:
            tensor = tensors[name]
            parts = [tensor] if tensor.grad is None else [tensor, tensor.grad]
            if optimizer is not None and isinstance(tensor, nn.Parameter):
                parts += state_tensors(optimizer, tensor)
            for part in parts:
                part.copy_(self._moved(name, part))

    def state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a dense state dict of the network in this order."""
        return {
            name: self._moved(name, value) if name in self.moves else value
            for name, value in state.items()
        }

    def _moved(self, name: str, tensor: Tensor) -> Tensor:
        for dimension, places in self.moves[name]:
            tensor = tensor.index_select(dimension, places.to(tensor.device))
        return tensor


def entries(order: Tensor, repeat: int) -> Tensor:
    """Return the order [C * repeat] of entries of which each channel of an order [C] has several.

    They lie side by side.
    """
    return (order[:, None] * repeat + torch.arange(repeat)).flatten()
