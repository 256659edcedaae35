"""Topology updates: score, count, exchange. One function does every update of every rule.

Source of the exploration rate: Liu et al. 2021 (ITOP).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_engine.errors import InputError, nearest
from sparse_engine.layers.base import SparseLayer
from sparse_engine.schema import check_like, demand
from sparse_engine.sparsity.drop_and_grow import (
    assert_invariants,
    clear_padding,
    select_drop_and_grow,
    swap_blocks,
)
from sparse_engine.sparsity.layer_budgets import Budget, Exchange, gradual, redistributed, steady
from sparse_engine.sparsity.rules import RULES
from sparse_engine.sparsity.update_schedule import UpdateSchedule


class Processes(Protocol):
    """What an update asks of the processes that train a model together."""

    size: int

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        ...

    def check_equal(self, found: Mapping[str, int], what: str) -> None:
        """Raise RunFailure unless a dictionary of numbers is the same everywhere."""


class _OneProcess:
    """A process that trains by itself."""

    size = 1

    def mean(self, x: Tensor) -> Tensor:
        """Return the tensor."""
        return x

    def check_equal(self, found: Mapping[str, int], what: str) -> None:
        """Compare with nobody."""


ONE_PROCESS = _OneProcess()


class Topology:
    """The blocks of a whole model as they change: updates, and which blocks were ever active."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        rule: str = "rigl",
        seed: int = 0,
        processes: Processes = ONE_PROCESS,
    ) -> None:
        """Watch the sparse layers of a model.

        Args:
            model: after sparsify.
            optimizer: its state is kept in step with the blocks; None when there is none.
            rule: "static", "set", "rigl", "snfs" or "granet".
            seed: the draws of an update depend on it and on the number of updates before.
            processes: those that train the model together: dense gradients are averaged, one
                layer at a time, and then scored.
        """
        if rule not in RULES:
            choices = ", ".join(RULES)
            hint = nearest(rule, RULES)
            raise InputError(f"unknown topology rule '{rule}'{hint}; choose from {choices}")
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
        self.optimizer, self.rule, self.seed = optimizer, rule, seed
        self.processes = processes
        self._reduce = processes.mean if processes.size > 1 else None
        self.updates = 0
        self.ever_active = {n: m.layout.mask().flatten() for n, m in self.layers.items()}

    def of(self, model: nn.Module, optimizer: Optimizer | None) -> Topology:
        """Return a topology of other layers that decides as this one, with nothing explored yet."""
        return Topology(model, optimizer, self.rule, self.seed, self.processes)

    @property
    def needs_gradient(self) -> bool:
        """Whether an update must be armed before the forward pass it takes its gradient from."""
        return RULES[self.rule].gradient_steps > 0

    @property
    def is_armed(self) -> bool:
        """Whether the next backward collects dense gradients."""
        return any(layer.is_collecting for layer in self.layers.values())

    def arm(self) -> None:
        """Collect dense gradients by block from the next backward, if the rule needs them."""
        for layer in self.layers.values() if self.needs_gradient else ():
            self._arm(layer)

    def _arm(self, layer: SparseLayer, scores: Tensor | None = None) -> None:
        layer.collect(RULES[self.rule].memory, scores, self._reduce)

    def arm_before(self, schedule: UpdateSchedule, step: int) -> None:
        """Collect in step `step` (counted from 1) if an update that looks at it is to come."""
        last = step + RULES[self.rule].gradient_steps - 1
        if schedule.updates_in(last) > schedule.updates_in(step - 1):
            self.arm()

    def disarm(self) -> None:
        """Stop collecting dense gradients and forget those collected."""
        for layer in self.layers.values():
            layer.stop()

    @torch.no_grad()
    def update(self, rate: float, pruned: float | None = None) -> None:
        """Replace the share `rate` of every layer's active blocks.

        Args:
            rate: from 0 to 1.
            pruned: share of gradual pruning done after this update (UpdateSchedule.pruned_share);
                None leaves the counts as they are. Rules other than granet do not look at it.
        """
        score = RULES[self.rule].grow_score
        if score is None:
            return
        # All scores first: an error in one must not leave half of the layers updated.
        grow_scores = {
            name: score(layer, self._generator(layer, number))
            for number, (name, layer) in enumerate(self.layers.items())
        }
        exchanges = self._exchanges(rate, pruned, grow_scores)
        for name, layer in self.layers.items():
            exchange, layout = exchanges[name], layer.layout
            drop = [n - kept for n, kept in zip(layout.groups_by_kind, exchange.kept)]
            grow = [n - kept for n, kept in zip(exchange.active, exchange.kept)]
            clear_padding(layer)
            if any(drop) or any(grow):
                strength = layer.values.abs().sum((1, 2))
                slots, ids = select_drop_and_grow(
                    layer.layout, strength, grow_scores[name], drop, grow
                )
                active = sum(exchange.active) * layout.group
                swap_blocks(layer, self.optimizer, slots, ids, active)
                layout.groups_by_kind = exchange.active
                assert_invariants(layer, self.optimizer, slots)
                self.ever_active[name] |= layer.layout.mask().flatten()
        self.updates += 1
        if self.processes.size > 1:
            what = f"the blocks after update {self.updates}"
            self.processes.check_equal(self._checksums(), what)

    def _checksums(self) -> dict[str, int]:
        """Return a number of which block lives in which slot, by layer; synchronises."""
        found = {}
        for name, layer in self.layers.items():
            ids = layer.layout.block_ids.long() + 1
            places = torch.arange(1, len(ids) + 1, device=ids.device)
            found[name] = int((ids * (places * 2_654_435_761 % 1_000_003)).sum())
        return found

    def _exchanges(
        self, rate: float, pruned: float | None, grow_scores: dict[str, Tensor]
    ) -> dict[str, Exchange]:
        budgets = {name: _budget(layer) for name, layer in self.layers.items()}
        if self.rule == "granet" and pruned is not None:
            return gradual(budgets, rate, pruned)
        if self.rule == "snfs" and budgets:
            return redistributed(budgets, rate, contributions(self.layers, grow_scores))
        return steady(budgets, rate)

    def exploration_rate(self) -> float:
        """Return R_s, the share of the sparse layers' weights that were ever active (ITOP).

        Synchronises.
        """
        layouts = {name: layer.layout for name, layer in self.layers.items()}
        weights = sum(math.prod(layout.shape) for layout in layouts.values())
        ever = 0
        for name, layout in layouts.items():
            groups = self.ever_active[name][:: layout.group].nonzero().flatten()
            ever += layout.kinds.weights_of(layout.kinds.count(groups))
        return ever / weights if weights else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates, the ever-active masks, and gradients collected so far."""
        collected = {n: m.collected for n, m in self.layers.items() if m.collected is not None}
        return {
            "updates": self.updates,
            "ever_active": dict(self.ever_active),
            "collected": collected,
        }

    def check_state(self, state: Any) -> None:
        """Raise InputError unless load_state_dict can take a state."""
        demand(isinstance(state, Mapping), "topology", "an object", state)
        like = {**self.state_dict(), "collected": {}}
        check_like({**state, "collected": {}}, like, "topology")
        demand(state["updates"] >= 0, "topology.updates", "at least 0", state["updates"])
        collected = state.get("collected")
        demand(isinstance(collected, Mapping), "topology.collected", "an object", collected)
        known = self.layers.keys() if self.needs_gradient else set()
        odd = sorted(map(str, collected.keys() - known))
        demand(not odd, "topology.collected", f"of layers that collect gradients, not '{odd[:1]}'")
        for name, scores in collected.items():
            total = torch.empty(self.layers[name].layout.total, device="meta")
            check_like(scores, total, f"topology.collected.{name}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from state_dict()."""
        self.updates = state["updates"]
        for name, mask in self.ever_active.items():
            mask.copy_(state["ever_active"][name])
        for name, scores in state["collected"].items():
            layer = self.layers[name]
            layer.stop()
            scores = scores.to(layer.layout.device)
            self._arm(layer, scores)

    def _generator(self, layer: SparseLayer, number: int) -> torch.Generator:
        seed = hash((self.seed, self.updates, number)) % 2**63
        return torch.Generator(layer.layout.device).manual_seed(seed)


def contributions(
    layers: Mapping[str, SparseLayer], scores: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return the mean score of each layer's active weights (SNFS).

    The only thing in an update that waits for the device: one copy of a number a layer, because
    the sizes of what the update does depend on it.
    """
    sums = [(scores[n] * m.layout.mask().flatten()).sum() for n, m in layers.items()]
    sizes = [m.layout.active_weights for m in layers.values()]
    found = torch.stack(sums).tolist()
    return {n: total / size for n, total, size in zip(layers, found, sizes)}


def _budget(layer: SparseLayer) -> Budget:
    layout, group = layer.layout, layer.layout.group
    final = layout.active if layer.final_active is None else layer.final_active
    return Budget(layout.kinds, layout.groups_by_kind, layout.slots // group, final // group)
