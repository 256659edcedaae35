"""Topology updates: score, top-k, swap. One function does every update of every rule.

Sources: SET, Mocanu et al. 2018; RigL, Evci et al. 2020; exploration rate, Liu et al. 2021 (ITOP).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_engine.errors import InputError, nearest
from sparse_engine.layer import SparseLayer
from sparse_engine.optimizer_state import state_tensors, zero_slots
from sparse_kernels import BlockLayout
from sparse_kernels.reference import gather_blocks

GrowScore = Callable[[SparseLayer, torch.Generator], Tensor]


def select_swap(
    layout: BlockLayout, drop_score: Tensor, grow_score: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Choose which slots change and which blocks they get.

    The `count` active groups with the lowest drop score go; of all groups that are then inactive,
    just-dropped ones included, the `count` with the highest grow score come. A group is one block,
    or with taps="all" the blocks of all taps, whose scores are summed.

    Args:
        layout: before the update.
        drop_score: [Z].
        grow_score: [OB * CB * R * S].
        count: in groups, at most layout.active / layout.group.

    Returns:
        slots and the new block ids that go into them, both [count * layout.group].
    """
    ids, total = layout.group_ids.long(), layout.total // layout.group
    drop_score, grow_score = (s.view(-1, layout.group).sum(1) for s in (drop_score, grow_score))
    order = drop_score.masked_fill(ids >= total, torch.inf).topk(count, largest=False)
    slots = order.indices
    kept = torch.zeros(total + 1, dtype=torch.bool, device=layout.device)
    kept[ids.index_fill(0, slots, total)] = True
    grown = grow_score.masked_fill(kept[:-1], -torch.inf).topk(count).indices
    return layout.expand_groups(slots), layout.expand_groups(grown)


@torch.no_grad()
def swap_blocks(
    layer: SparseLayer, optimizer: Optimizer | None, slots: Tensor, block_ids: Tensor
) -> None:
    """Put other blocks into some slots, in place: their values and momenta start at zero."""
    ids = layer.layout.block_ids.index_copy(0, slots, block_ids.to(torch.int32))
    layer.layout.update_(ids)
    layer.values.index_fill_(0, slots, 0)
    if optimizer is not None:
        zero_slots(optimizer, layer.values, slots)


def random_score(layer: SparseLayer, generator: torch.Generator) -> Tensor:
    """Score blocks at random (SET)."""
    return torch.rand(layer.layout.total, generator=generator, device=layer.layout.device)


def gradient_score(layer: SparseLayer, generator: torch.Generator) -> Tensor:
    """Score blocks by the L1 norm of the dense weight's gradient (RigL)."""
    scores = layer.disarm()
    if scores is None:
        raise RuntimeError(
            "no gradient reached a sparse layer since the last step: "
            "call backward() before each update, through every sparse layer"
        )
    return scores


GROW_SCORES: dict[str, GrowScore | None] = {
    "static": None,
    "set": random_score,
    "rigl": gradient_score,
}


class Topology:
    """The blocks of a whole model as they change: updates, and which blocks were ever active."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer | None, rule: str = "rigl", seed: int = 0
    ) -> None:
        """Watch the sparse layers of a model.

        Args:
            model: after sparsify.
            optimizer: its state is kept in step with the blocks; None when there is none.
            rule: "static", "set" or "rigl".
            seed: the draws of an update depend on it and on the number of updates before.
        """
        if rule not in GROW_SCORES:
            choices = ", ".join(GROW_SCORES)
            hint = nearest(rule, GROW_SCORES)
            raise InputError(f"unknown topology rule '{rule}'{hint}; choose from {choices}")
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
        self.optimizer, self.rule, self.seed = optimizer, rule, seed
        self.updates = 0
        self.ever_active = {n: m.layout.mask().flatten() for n, m in self.layers.items()}

    @property
    def needs_gradient(self) -> bool:
        """Whether an update must be armed before the forward pass it takes its gradient from."""
        return self.rule == "rigl"

    def arm(self) -> None:
        """Collect dense gradients by block from the next backward, if the rule needs them."""
        for layer in self.layers.values() if self.needs_gradient else ():
            layer.arm()

    def disarm(self) -> None:
        """Stop collecting dense gradients and forget those collected."""
        for layer in self.layers.values():
            layer.disarm()

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """Replace the share `rate` of every layer's active blocks."""
        score = GROW_SCORES[self.rule]
        if score is None:
            return
        # All scores first: an error in one must not leave half of the layers updated.
        grow_scores = [
            score(layer, self._generator(layer, number))
            for number, layer in enumerate(self.layers.values())
        ]
        for (name, layer), grow_score in zip(self.layers.items(), grow_scores):
            count = int(rate * (layer.layout.active // layer.layout.group) + 0.5)
            if count:
                drop_score = layer.values.abs().sum((1, 2))
                slots, grown = select_swap(layer.layout, drop_score, grow_score, count)
                swap_blocks(layer, self.optimizer, slots, grown)
                assert_invariants(layer, self.optimizer, slots)
                self.ever_active[name] |= layer.layout.mask().flatten()
        self.updates += 1

    def exploration_rate(self) -> float:
        """Return R_s, the share of the sparse layers' weights that were ever active (ITOP).

        A ragged edge block counts as the layer's average block. Synchronises.
        """
        weights = {n: math.prod(layer.layout.shape) for n, layer in self.layers.items()}
        ever = sum(int(mask.sum()) / len(mask) * weights[n] for n, mask in self.ever_active.items())
        return ever / sum(weights.values()) if weights else 1.0

    def state_dict(self) -> dict:
        """Return the number of updates and the ever-active masks."""
        return {"updates": self.updates, "ever_active": dict(self.ever_active)}

    def load_state_dict(self, state: dict) -> None:
        """Continue from state_dict()."""
        self.updates = state["updates"]
        for name, mask in self.ever_active.items():
            mask.copy_(state["ever_active"][name])

    def _generator(self, layer: SparseLayer, number: int) -> torch.Generator:
        seed = hash((self.seed, self.updates, number)) % 2**63
        return torch.Generator(layer.layout.device).manual_seed(seed)


def assert_invariants(layer: SparseLayer, optimizer: Optimizer | None, changed: Tensor) -> None:
    """Check a layer after an update: block count, zeros where nothing is stored, no old momentum.

    Raises:
        AssertionError: at once on a CPU; on a GPU the check runs on the device, without a sync.
    """
    layout, values = layer.layout, layer.values.detach()
    _check(layout.mask().sum() == layout.active, "the count of active blocks changed")
    whole = layout.expand_groups(layout.group_ids).clamp(max=layout.total)
    _check((layout.block_ids == whole).all(), "a group has lost a tap")
    _check(~values.index_select(0, changed).any(), "a grown block does not start at zero")
    if any(n % b for n, b in zip(layout.shape[:2], layout.block)) or layout.active < layout.slots:
        real = gather_blocks(values.new_ones(layout.shape), layout.tensors(), layout.sizes())
        _check(~values.masked_fill(real > 0, 0).any(), "a value outside the weight is not zero")
    for state in state_tensors(optimizer, layer.values) if optimizer is not None else ():
        _check(~state.index_select(0, changed).any(), "a grown block has momentum")


def _check(condition: Tensor, message: str) -> None:
    if condition.is_cuda:
        torch._assert_async(condition, message)
    elif not condition:
        raise AssertionError(f"topology update: {message}")
