"""Topology updates: score, count, exchange. One function does every update of every rule.

Source of the exploration rate: Liu et al. 2021 (ITOP).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_engine.errors import InputError, nearest
from sparse_engine.layers.base import SparseLayer
from sparse_engine.optimizers.owners import Owners
from sparse_engine.optimizers.reset import reset_slots
from sparse_engine.schema import check_like, demand
from sparse_engine.sparsity.drop_and_grow import (
    ResetSlots,
    assert_invariants,
    block_strengths,
    clear_padding,
    select_drop_and_grow,
    swap_blocks,
)
from sparse_engine.sparsity.layer_budgets import Budget, Exchange, gradual, redistributed, steady
from sparse_engine.sparsity.processes import ONE_PROCESS, Processes
from sparse_engine.sparsity.rules import RULES
from sparse_engine.sparsity.update_schedule import UpdateRule, UpdateSchedule


class Topology:
    """The blocks of a whole model as they change: updates, and which blocks were ever active."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Owners | None,
        rule: UpdateRule = "rigl",
        seed: int = 0,
        processes: Processes = ONE_PROCESS,
        accumulate: bool = False,
        cover: bool = False,
    ) -> None:
        """Watch the sparse layers of a model.

        Args:
            model: after sparsify.
            optimizer: its state, or that of all owners, is kept in step with the blocks; None when
                there is none.
            rule: "static", "set", "rigl", "snfs" or "granet".
            seed: the draws of an update depend on it and on the number of updates before.
            processes: those that train the model together.
            accumulate: whether layers hold their dense gradient until somebody scores it (see
                step_gradients.py). Otherwise every step is one backward pass, in which dense
                gradients are averaged over the processes, one layer at a time, and scored.
            cover: whether updates spare channels that would lose all blocks (see coverage.py).
        """
        if rule not in RULES:
            choices = ", ".join(RULES)
            hint = nearest(rule, RULES)
            raise InputError(f"unknown topology rule '{rule}'{hint}; choose from {choices}")
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
        self.optimizer, self.rule, self.seed = optimizer, rule, seed
        self.processes, self.accumulate, self.cover = processes, accumulate, cover
        self.updates = 0
        for layer in self.layers.values():
            layer.is_updated = rule != "static"
        self.begin_exploring()

    def of(self, model: nn.Module, optimizer: Optimizer | None) -> Topology:
        """Return a topology of other layers that decides as this one, with nothing explored yet."""
        same = self.rule, self.seed, self.processes, self.accumulate, self.cover
        return Topology(model, optimizer, *same)

    def begin_exploring(self) -> None:
        """Take the present blocks for the only ones that were ever active."""
        self.ever_active = {n: m.layout.mask().flatten() for n, m in self.layers.items()}

    @property
    def needs_gradient(self) -> bool:
        """Whether an update must be armed before the forward pass it takes its gradient from."""
        return RULES[self.rule].gradient_steps > 0

    @property
    def is_armed(self) -> bool:
        """Whether the next backward collects dense gradients."""
        return any(layer.is_collecting for layer in self.layers.values())

    def arm(self, names: Collection[str] | None = None) -> None:
        """Collect dense gradients by block from the next backward, if the rule needs them.

        names: of the layers that do, all unless given.
        """
        for name, layer in self.layers.items() if self.needs_gradient else ():
            if names is None or name in names:
                self._arm(layer)

    def _arm(self, layer: SparseLayer, scores: Tensor | None = None) -> None:
        scored_at_once = self.processes.size > 1 and not self.accumulate
        reduce = self.processes.mean if scored_at_once else None
        layer.collect(RULES[self.rule].memory, scores, reduce, self.accumulate)

    def looks_at(self, schedule: UpdateSchedule, step: int) -> bool:
        """Return whether an update depends on the gradients of step `step` (counted from 1)."""
        last = step + RULES[self.rule].gradient_steps - 1
        return schedule.updates_in(last) > schedule.updates_in(step - 1)

    def arm_before(self, schedule: UpdateSchedule, step: int) -> None:
        """Collect in step `step` (counted from 1) if an update that looks at it is to come."""
        if self.looks_at(schedule, step):
            self.arm()

    def disarm(self) -> None:
        """Stop collecting dense gradients and forget those collected."""
        for layer in self.layers.values():
            layer.stop()

    @torch.no_grad()
    def update(
        self,
        rate: float,
        pruned: float | None = None,
        stays: Mapping[str, Tensor | None] | None = None,
    ) -> dict[str, Tensor | None]:
        """Replace the share `rate` of every layer's active blocks.

        Args:
            rate: from 0 to 1.
            pruned: share of gradual pruning done after this update (UpdateSchedule.pruned_share);
                None leaves the counts as they are. Rules other than granet do not look at it.
            stays: the layers to update, all unless given. Each with a bool on its device that says
                that the layer stays as it is after all, or None.

        Returns:
            The layers that were updated; each with a bool on its device that is true if it stayed
            as it was, since its scores are not finite or `stays` said so. None if that cannot be.
            On a GPU gradual pruning, which needs no score, goes on in such a layer.
        """
        if RULES[self.rule].grow_score is None:
            return {}
        # All scores first: an error in one must not leave half of the layers updated.
        scores, kept = self._scores(stays)
        for name, exchange in self._exchanges(rate, pruned, scores).items():
            self._exchange(name, exchange, scores[name], kept[name])
        self.updates += 1
        if self.processes.size > 1:
            what = f"the blocks after update {self.updates}"
            self.processes.check_equal(self._checksums(), what)
        return kept

    def _scores(
        self, stays: Mapping[str, Tensor | None] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
        """Return scores of growth for layers that change, and which of them stay after all.

        On a CPU the latter are left out.
        """
        score = RULES[self.rule].grow_score
        assert score is not None
        scores, kept = {}, {}
        for number, (name, layer) in enumerate(self.layers.items()):
            if stays is None or name in stays:
                found = score(layer, self._generator(layer, number))
                stay = None if stays is None else stays[name]
                if self.needs_gradient:
                    bad = ~found.sum().isfinite()
                    stay = bad if stay is None else bad | stay
                if stay is None or stay.is_cuda or not stay:
                    scores[name] = found
                    kept[name] = stay if stay is not None and stay.is_cuda else None
        return scores, kept

    def _exchange(self, name: str, exchange: Exchange, score: Tensor, stay: Tensor | None) -> None:
        """Give one layer other blocks, unless `stay`; then do only what needs no score."""
        layer = self.layers[name]
        clear_padding(layer)
        layout = layer.layout
        drop = [n - kept for n, kept in zip(layout.groups_by_kind, exchange.kept)]
        grow = [n - kept for n, kept in zip(exchange.active, exchange.kept)]
        if any(drop) or any(grow):
            scores = block_strengths(layer), score
            select = partial(select_drop_and_grow, layout, *scores, cover=self.cover)
            less, instead = [max(0, d - g) for d, g in zip(drop, grow)], None
            if stay is not None and any(less):
                instead = select(less, [0] * len(less))
            active = sum(exchange.active) * layout.group
            slots, ids = select(drop, grow)
            swap_blocks(layer, self._reset, slots, ids, active, stay, instead)
            layer.layout.groups_by_kind = exchange.active
            assert_invariants(layer, slots, stay)
            self.ever_active[name] |= layer.layout.mask().flatten()

    @property
    def _reset(self) -> ResetSlots | None:
        """What gives slots of a parameter the optimizer's initial state."""
        if isinstance(self.optimizer, Owners):
            return self.optimizer.reset_slots
        return None if self.optimizer is None else partial(reset_slots, self.optimizer)

    def _checksums(self) -> dict[str, Tensor]:
        """Return a number of which block lives in which slot, by layer."""
        found = {}
        for name, layer in self.layers.items():
            ids = layer.layout.block_ids.long() + 1
            places = torch.arange(1, len(ids) + 1, device=ids.device)
            found[name] = (ids * (places * 2_654_435_761 % 1_000_003)).sum()
        return found

    def _exchanges(
        self, rate: float, pruned: float | None, grow_scores: dict[str, Tensor]
    ) -> dict[str, Exchange]:
        budgets = {name: _budget(self.layers[name]) for name in grow_scores}
        if self.rule == "granet" and pruned is not None:
            return gradual(budgets, rate, pruned)
        if self.rule == "snfs" and budgets:
            found = contributions({n: self.layers[n] for n in budgets}, grow_scores)
            found = {n: number for n, number in found.items() if math.isfinite(number)}
            budgets = {n: budgets[n] for n in found}
            return redistributed(budgets, rate, found) if budgets else {}
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
