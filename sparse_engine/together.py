"""Members that train as one network, each on its own batches and with its own topology.

    together = Together(models)                   # after sparsify and .to(device)
    optimizer = torch.optim.SGD(together.parameters(), lr=0.1, momentum=0.9)
    topology = GroupTopology(together, optimizer, "rigl", seeds=range(len(models)))
    logits = together(x)                          # x [M, N, ...] -> [M, N, K]
    loss = sum(map(cross_entropy, logits, y))     # a sum over members: each learns as alone

The models stay usable: their tensors are views of the grouped ones, so they can be evaluated and
saved at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_engine.criteria import USUAL, Criteria
from sparse_engine.errors import InputError
from sparse_engine.grouping import group
from sparse_engine.layer import SparseLayer
from sparse_engine.stacking import UNGROUPED, Stack, diagonal_layout
from sparse_engine.topology import Topology

RULES = ("static", "set", "rigl", "granet")


class Together(nn.Module):
    """Members grouped for training; one launch for each layer."""

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
            if layers and isinstance(grouped, SparseLayer):
                _share_sparse(name, grouped, layers)
            elif layers and next(grouped.children(), None) is None:
                _share(grouped, layers)

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

    def train(self, mode: bool = True) -> Together:
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


class GroupTopology(Topology):
    """Topology updates of each member by itself, as if it were trained alone."""

    def __init__(
        self,
        together: Together,
        optimizer: Optimizer,
        rule: str,
        seeds: Sequence[int],
        criteria: Criteria = USUAL,
    ) -> None:
        """Watch the sparse layers.

        Args:
            together: the members.
            optimizer: of together.parameters().
            rule: "static", "set", "rigl" or "granet".
            seeds: of each member's choices.
            criteria: what decides between blocks.
        """
        if rule not in RULES:
            raise InputError(f"members train together by {', '.join(RULES)}, not '{rule}'")
        members = nn.ModuleList(together.members)
        super().__init__(members, optimizer, rule, criteria=criteria)
        self.seeds = list(seeds)
        self.parts = [
            Topology(
                model,
                _MemberState(optimizer, together, number),  # type: ignore
                rule,
                seed,
                criteria=criteria,
            )
            for number, (model, seed) in enumerate(zip(members, seeds, strict=True))
        ]
        for number, part in enumerate(self.parts):
            part.ever_active = {n: self.ever_active[f"{number}.{n}"] for n in part.ever_active}
        self._found = list(together.sparse_layers().values())

    def of(self, model: nn.Module, optimizer: Optimizer | None) -> GroupTopology:
        """Return the topology of members that were grouped again, with nothing explored yet."""
        assert isinstance(model, Together)
        assert optimizer is not None
        return GroupTopology(model, optimizer, self.rule, self.seeds, self.criteria)

    @property
    def is_armed(self) -> bool:
        """Whether the next backward collects dense gradients."""
        return any(grouped.is_armed for grouped, _ in self._found)

    def arm(self) -> None:
        """Collect dense gradients from the next backward, if the rule needs them.

        Those of a grouped layer are dense between members too: M times the work of an update.
        """
        for grouped, _ in self._found if self.needs_gradient else ():
            self._arm(grouped)

    def disarm(self) -> None:
        """Stop collecting dense gradients and forget those collected."""
        for grouped, _ in self._found:
            grouped.disarm()

    def update(self, rate: float, pruned: float | None = None) -> None:
        """Update every member's blocks; arguments as of Topology.update."""
        for grouped, layers in self._found:
            if grouped.is_armed:
                _hand_out(grouped, layers)
        for part in self.parts:
            part.updates = self.updates
            part.update(rate, pruned)
        self.updates = self.parts[0].updates
        for grouped, layers in self._found:
            fresh = _diagonal(grouped, layers)
            grouped.layout.update_(fresh.block_ids, fresh.active)


class _MemberState:
    """What an optimizer holds of one member, as views."""

    def __init__(self, optimizer: Optimizer, together: Together, member: int) -> None:
        self._optimizer, self._places = optimizer, {}
        for grouped, layers in together.sparse_layers().values():
            first = sum(layer.layout.slots for layer in layers[:member])
            place = slice(first, first + layers[member].layout.slots)
            self._places[layers[member].values] = (grouped.values, place)

    @property
    def state(self) -> Mapping[Tensor, dict[str, Any]]:
        return {own: self._of(*place) for own, place in self._places.items()}

    def _of(self, parameter: Tensor, place: slice) -> dict[str, Any]:
        state = self._optimizer.state.get(parameter, {})
        return {
            key: value[place]
            for key, value in state.items()
            if isinstance(value, Tensor) and value.shape == parameter.shape
        }


def _share(grouped: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Make members' tensors views of a grouped layer's."""
    for key, tensor in {**grouped._parameters, **grouped._buffers}.items():
        for member, layer in enumerate(layers):
            own = getattr(layer, key)
            if own is None:
                continue
            if own.ndim == 0:
                own.data = tensor.data  # a norm's count of batches, the same for all
                continue
            rows = tensor if tensor.ndim > own.ndim else tensor.unflatten(0, (len(layers), -1))
            own.data = rows.data[member][tuple(slice(size) for size in own.shape)]


def _share_sparse(name: str, grouped: SparseLayer, layers: Sequence[Any]) -> None:
    if not all(isinstance(layer, SparseLayer) for layer in layers):
        raise InputError(f"layer '{name}' is sparse in some members only; {UNGROUPED}")
    parts = grouped.values.data.split([layer.layout.slots for layer in layers])
    for member, (layer, values) in enumerate(zip(layers, parts, strict=True)):
        layer.values.data = values
        if layer.bias is not None:
            biases = grouped.bias.data.unflatten(0, (len(layers), -1))
            layer.bias.data = biases[member][: len(layer.bias)]


def _diagonal(grouped: SparseLayer, layers: Sequence[Any]) -> Any:
    out_pitch, in_pitch = (width // len(layers) for width in grouped.layout.shape[:2])
    given = Stack(layers[0].layout.shape[1], in_pitch, False)
    return diagonal_layout([layer.layout for layer in layers], given, out_pitch)


def _hand_out(grouped: SparseLayer, layers: Sequence[Any]) -> None:
    """Give each member the scores of its own blocks among those of the group."""
    scores = grouped.disarm()
    members, (rows, columns, *taps) = len(layers), grouped.layout.grid
    for member, layer in enumerate(layers):
        own = None
        if scores is not None:
            shape = (members, rows // members, members, columns // members, *taps)
            own_rows, own_columns = layer.layout.grid[:2]
            own = scores.view(shape)[member, :own_rows, member, :own_columns].flatten()
        layer.arm(scores=own)
