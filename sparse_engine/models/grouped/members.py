"""Members that train as one network, each on its own batches and with its own topology.

    grouped = GroupedMembers(models)              # after sparsify and .to(device)
    optimizer = torch.optim.SGD(grouped.parameters(), lr=0.1, momentum=0.9)
    topology = GroupTopology(grouped, optimizer, "rigl", seeds=range(len(models)))
    logits = grouped(x)                           # x [M, N, ...] -> [M, N, K]
    loss = sum(map(cross_entropy, logits, y))     # a sum over members: each learns as alone

The models stay usable: their tensors are views of the grouped ones, so they can be evaluated and
saved at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.models.grouped.group import group
from sparse_engine.models.grouped.slices import UNGROUPED


class GroupedMembers(nn.Module):
    """Members grouped for training; one launch for each layer."""

    __call__: Callable[[Tensor], Tensor]

    def __init__(self, models: Sequence[nn.Module]) -> None:
        """Group models and make their parameters and buffers views of the group's.

        Args:
            models: as of `group`, with the same layers sparse in all, on their device: what
                moves them afterwards, or the group, parts the two.

        Raises:
            InputError: models that cannot be grouped, or a layer that is sparse in some only.
        """
        super().__init__()
        self.network = group(models, shared_input=False)
        self._models = list(models)
        for name, grouped in self.network.named_modules():
            layers = self._layers(name)
            if layers and next(grouped.children(), None) is None:
                _share(name, grouped, layers)

    @property
    def members(self) -> list[nn.Module]:
        """The models."""
        return list(self._models)

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of N inputs for each member, [M, N, ...], to logits [M, N, K]."""
        return self.network(x)

    def training_pair(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [M, N, K] and labels [M, N] of members' batches, one after another.

        Args:
            x: [M * N, ...].
            y: [M * N].
        """
        members = len(self._models)
        return self(x.unflatten(0, (members, -1))), y.unflatten(0, (members, -1))

    def train(self, mode: bool = True) -> GroupedMembers:
        """Set the mode of the group and of the models."""
        for model in self._models:
            model.train(mode)
        return super().train(mode)

    def sparse_layers(self) -> dict[str, tuple[SparseLayer, list[Any]]]:
        """Return the grouped sparse layers by name, and the members' layers of each."""
        return {
            name: (layer, self._layers(name))
            for name, layer in self.network.named_modules()
            if isinstance(layer, SparseLayer)
        }

    def _layers(self, name: str) -> list[nn.Module]:
        known = dict(self._models[0].named_modules())
        return [model.get_submodule(name) for model in self._models] if name in known else []


def _share(name: str, grouped: nn.Module, layers: Sequence[Any]) -> None:
    """Make members' tensors views of a grouped layer's."""
    if isinstance(grouped, SparseLayer):
        if not all(isinstance(layer, SparseLayer) for layer in layers):
            raise InputError(f"layer '{name}' is sparse in some members only; {UNGROUPED}")
        parts = grouped.values.data.split([layer.layout.slots for layer in layers])
        for layer, values in zip(layers, parts, strict=True):
            layer.values.data = values
    for key, tensor in {**grouped._parameters, **grouped._buffers}.items():
        for member, layer in enumerate(layers):
            own = getattr(layer, key)
            if own is None or key in ("values", "block_ids", "block_check"):
                continue
            if own.ndim == 0:
                own.data = tensor.data  # a norm's count of batches, the same for all
                continue
            each = tensor if tensor.ndim > own.ndim else tensor.unflatten(0, (len(layers), -1))
            own.data = each.data[member][tuple(slice(size) for size in own.shape)]
