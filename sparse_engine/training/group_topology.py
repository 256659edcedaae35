"""Topology updates of members that train as one network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_engine.errors import InputError, nearest
from sparse_engine.layers.base import SparseLayer
from sparse_engine.models.grouped.layers import diagonal_layout
from sparse_engine.models.grouped.members import GroupedMembers
from sparse_engine.models.grouped.slices import MemberSlices
from sparse_engine.sparsity.topology import Topology

GroupRule = Literal["static", "set", "rigl", "granet"]
RULES: tuple[GroupRule, ...] = get_args(GroupRule)


class GroupTopology(Topology):
    """Topology updates of each member by itself, as if it were trained alone."""

    def __init__(
        self,
        grouped: GroupedMembers,
        optimizer: Optimizer,
        rule: GroupRule,
        seeds: Sequence[int],
        cover: bool = False,
    ) -> None:
        """Watch the sparse layers.

        Args:
            grouped: the members.
            optimizer: of grouped.parameters().
            rule: "static", "set", "rigl" or "granet".
            seeds: of each member's choices.
            cover: as Topology has it.
        """
        if rule not in RULES:
            hint = nearest(rule, RULES)
            raise InputError(f"members train together by {', '.join(RULES)}, not '{rule}'{hint}")
        members = nn.ModuleList(grouped.members)
        super().__init__(members, optimizer, rule, cover=cover)
        self.seeds = list(seeds)
        self.parts = [
            Topology(
                model,
                _MemberState(optimizer, grouped, number),  # type: ignore
                rule,
                seed,
                cover=cover,
            )
            for number, (model, seed) in enumerate(zip(members, seeds, strict=True))
        ]
        for number, part in enumerate(self.parts):
            part.ever_active = {n: self.ever_active[f"{number}.{n}"] for n in part.ever_active}
        self._grouped = list(grouped.sparse_layers().values())

    def of(self, model: nn.Module, optimizer: Optimizer | None) -> GroupTopology:
        """Return the topology of members that were grouped again, with nothing explored yet."""
        assert isinstance(model, GroupedMembers)
        assert optimizer is not None
        return GroupTopology(model, optimizer, self.rule, self.seeds, self.cover)

    @property
    def is_armed(self) -> bool:
        """Whether the next backward collects dense gradients."""
        return any(grouped.is_collecting for grouped, _ in self._grouped)

    def arm(self) -> None:
        """Collect dense gradients from the next backward, if the rule needs them.

        Those of a grouped layer are dense between members too: M times the work of an update.
        """
        for grouped, _ in self._grouped if self.needs_gradient else ():
            self._arm(grouped)

    def disarm(self) -> None:
        """Stop collecting dense gradients and forget those collected."""
        for grouped, _ in self._grouped:
            grouped.stop()

    def update(
        self,
        rate: float,
        pruned: float | None = None,
        stays: Mapping[str, Tensor | None] | None = None,
    ) -> dict[str, Tensor | None]:
        """Update every member's blocks; arguments and result as of Topology.update.

        Names begin with the number of a member.
        """
        for grouped, layers in self._grouped:
            if grouped.is_collecting:
                _hand_out(grouped, layers)
        updated = {}
        for number, part in enumerate(self.parts):
            part.updates = self.updates
            names = {n: f"{number}.{n}" for n in part.layers}
            own = None if stays is None else {n: stays[names[n]] for n in names}
            updated |= {names[n]: kept for n, kept in part.update(rate, pruned, own).items()}
        self.updates = self.parts[0].updates
        for grouped, layers in self._grouped:
            out_stride, in_stride = (width // len(layers) for width in grouped.layout.shape[:2])
            given = MemberSlices(layers[0].layout.shape[1], in_stride, False)
            fresh = diagonal_layout([layer.layout for layer in layers], given, out_stride)
            grouped.change_blocks_(fresh.block_ids, fresh.active)
        return updated


class _MemberState:
    """What an optimizer holds of one member, as views."""

    def __init__(self, optimizer: Optimizer, members: GroupedMembers, member: int) -> None:
        self._optimizer, self._places = optimizer, {}
        for grouped, layers in members.sparse_layers().values():
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


def _hand_out(grouped: SparseLayer, layers: Sequence[Any]) -> None:
    """Give each member the scores of its own blocks among those of the group."""
    scores = grouped.stop()
    members, (rows, columns, *taps) = len(layers), grouped.layout.grid
    for member, layer in enumerate(layers):
        own = None
        if scores is not None:
            shape = (members, rows // members, members, columns // members, *taps)
            own_rows, own_columns = layer.layout.grid[:2]
            own = scores.view(shape)[member, :own_rows, member, :own_columns].flatten()
        layer.collect(scores=own, accumulate=False)
