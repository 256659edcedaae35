"""Channels put in an order in which strong weights share blocks, before a network is pruned.

As in TETRIS (Ji et al., NeurIPS 2018), two steps take turns: the best blocks of every layer in
the present order, and the best place of every channel for these blocks, a linear assignment. Here
channels that belong together move in all layers at once, and blocks are chosen softly at first:
those near the limit count in part, less and less, which leaves poor orders that hard choices keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_engine.errors import InputError
from sparse_engine.installed import require
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.sparsity.channel_permutation.groups import ChannelGroup, channel_groups
from sparse_engine.sparsity.channel_permutation.permutation import ChannelPermutation, entries
from sparse_kernels import BlockLayout

ROUNDS = 12
# Width of the soft choice in the first rounds, in standard deviations of a layer's block norms.
WIDTHS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1)
ENOUGH = 1e-4
_TINY = 1e-30
# What layers are to become, by name: a layout's ids do not matter, and None is a full layer.
Target = LayerPlan | BlockLayout
Targets = Mapping[str, Target | None]


@dataclass(frozen=True)
class FoundPermutation:
    """A permutation, and the share of each layer's L1 norm in its best blocks, by name."""

    permutation: ChannelPermutation
    before: dict[str, float]
    after: dict[str, float]


def permute_for(
    model: nn.Module, targets: Targets, optimizer: Optimizer | None = None, rounds: int = ROUNDS
) -> FoundPermutation:
    """Put a network's channels in an order that suits the blocks it is about to be pruned to.

    Args:
        model: changed in place, and computes the same as before within rounding. A sparse layer
            that it reorders becomes an ordinary module with zeros: give it blocks next.
        targets: block and number of blocks of layers by name; None for one that will be full.
        optimizer: whose state of the parameters moves along.
        rounds: at most, over all groups of channels; WIDTHS of them with soft choices.

    Returns:
        The permutation, for states kept aside, and what it gained: the mean of shares never falls.

    Raises:
        InputError: a model that cannot be traced, or weights that are not finite.
    """
    found = find_permutation(model, targets, rounds)
    found.permutation.apply_(model, optimizer)
    return found


@torch.no_grad()
def find_permutation(model: nn.Module, targets: Targets, rounds: int = ROUNDS) -> FoundPermutation:
    """Return what permute_for would do, and leave the model as it is; arguments as there."""
    require("permuting channels", "scipy")
    modules = dict(model.named_modules())
    if any(p.is_meta for p in model.parameters()):
        return FoundPermutation(ChannelPermutation({}), {}, {})
    layers = {
        name: _Layer(name, modules[name], target) for name, target in targets.items() if target
    }
    kept_sparse = {n for n, m in modules.items() if isinstance(m, SparseLayer)} - set(targets)
    groups = [_Group(g, layers) for g in channel_groups(model)]
    groups = [g for g in groups if g.readings and not g.layers_among(kept_sparse)]
    before = {name: layer.kept() for name, layer in layers.items()}
    _search(layers, groups, rounds)
    after = {name: layer.kept() for name, layer in layers.items()}
    if sum(after.values()) <= sum(before.values()):
        return FoundPermutation(ChannelPermutation({}), before, before)
    permutation = ChannelPermutation.of([g.group for g in groups], [g.order for g in groups])
    return FoundPermutation(permutation, before, after)


def _search(layers: Mapping[str, _Layer], groups: Sequence[_Group], rounds: int) -> None:
    """Reorder groups until the shares kept rise no more; the best order is found, and stays."""
    for group in groups:
        group.move(group.strength().argsort(descending=True, stable=True))
    best, orders = 0.0, [group.order for group in groups]
    for number in range(rounds):
        width = WIDTHS[number] if number < len(WIDTHS) else 0.0
        for group in groups:
            group.assign(width)
        kept = sum(layer.kept() for layer in layers.values())
        if kept > best:
            orders = [group.order for group in groups]
        if not width and kept < best + ENOUGH * len(layers):
            break
        best = max(best, kept)
    for group, order in zip(groups, orders):
        group.move_to(order)


class _Layer:
    """Shares of a layer's L1 norm, zero where blocks are ragged.

    [OB * BO, CB * BC, T], where T is the number of groups of taps that come and go as one.
    """

    def __init__(self, name: str, module: nn.Module, target: Target) -> None:
        sparse = isinstance(module, SparseLayer)
        weight = module.dense_weight() if sparse else module.weight
        shares = weight.detach().float().cpu().abs().reshape(*weight.shape[:2], -1)
        shares = shares.unflatten(2, (-1, target.group)).sum(3)
        total = shares.sum()
        if not total.isfinite():
            raise InputError(f"layer '{name}' has weights that are not finite: none is strongest")
        (bo, bc), (rows, columns) = target.block, shares.shape[:2]
        shares = F.pad(shares / total.clamp(min=_TINY), (0, 0, 0, -columns % bc, 0, -rows % bo))
        self.shares, self.block = shares, (bo, bc)
        self.kinds, self.counts = target.kinds, target.groups_by_kind
        self.grid = (len(shares) // bo, bo, shares.shape[1] // bc, bc, shares.shape[2])

    def norms(self) -> Tensor:
        """Return the norm of each block, [OB, CB, T]."""
        return self.shares.view(self.grid).sum((1, 3))

    def kept(self) -> float:
        """Return the share of the norm in the best blocks."""
        norms = self.norms().flatten()
        return float(norms[self._best(norms)].sum())

    def chosen(self, width: float) -> Tensor:
        """Return how much each block counts, [OB, CB, T]: 1 for the best, 0 for the others.

        With a width it falls from 1 to 0 around the limit, by the logistic function.
        """
        norms = self.norms()
        flat = norms.flatten()
        best = self._best(flat)
        if not width:
            return torch.zeros(len(flat)).index_fill_(0, best, 1.0).view(norms.shape)
        spread = norms.std(correction=0).clamp(min=_TINY)
        # The weakest of the best of each kind; a kind without any has a limit that none reaches.
        limits = [
            flat[b].min() if len(b) else flat.new_tensor(torch.inf) for b in best.split(self.counts)
        ]
        limit = torch.stack(limits)[self.kinds.of_groups(torch.arange(len(flat)))]
        return torch.sigmoid((norms - limit.view(norms.shape)) / (width * spread))

    def _best(self, norms: Tensor) -> Tensor:
        """Return which of the blocks are the best, as many of each kind as the target has."""
        return self.kinds.top(norms, self.counts)

    def worth(self, dimension: int, chosen: Tensor) -> Tensor:
        """Return the norm that each row (0) or column (1) keeps in each block of them.

        [OB * BO, OB] or [CB * BC, CB].
        """
        ob, bo, cb, bc, taps = self.grid
        if dimension == 0:
            sums = self.shares.view(ob * bo, cb, bc, taps).sum(2)
        else:
            sums = self.shares.view(ob, bo, cb * bc, taps).sum(1).transpose(0, 1)
        return sums.flatten(1) @ chosen.transpose(0, dimension).flatten(1).T

    def move(self, dimension: int, order: Tensor) -> None:
        """Put rows (0) or columns (1) in another order; those that pad stay."""
        part = self.shares.narrow(dimension, 0, len(order))
        part.copy_(part.index_select(dimension, order))


class _Group:
    """A group of channels, its order so far, and the layers that have them."""

    def __init__(self, group: ChannelGroup, layers: Mapping[str, _Layer]) -> None:
        self.group, self.order = group, torch.arange(group.channels)
        self.readings = [
            (layers[name], axis.dimension, axis.repeat)
            for axis in group.axes
            for name, _, part in [axis.tensor.rpartition(".")]
            if part == "weight" and name in layers
        ]

    def layers_among(self, names: set[str]) -> bool:
        """Return whether one of some layers has channels of the group."""
        return any(axis.tensor.rpartition(".")[0] in names for axis in self.group.axes)

    def strength(self) -> Tensor:
        """Return the norm of each channel's weights in all layers, [C]."""
        total = torch.zeros(self.group.channels)
        for layer, dimension, repeat in self.readings:
            sums = layer.shares.sum((1 - dimension, 2))[: len(total) * repeat]
            total += sums.view(-1, repeat).sum(1)
        return total

    def assign(self, width: float) -> None:
        """Give every channel the place where chosen blocks keep most of it."""
        # Here, since models that are not reordered need not wait for it.
        from scipy.optimize import linear_sum_assignment

        places = torch.arange(self.group.channels)
        worth = torch.zeros(len(places), len(places))
        for layer, dimension, repeat in self.readings:
            found = layer.worth(dimension, layer.chosen(width))
            found = found[: len(places) * repeat].view(len(places), repeat, -1)
            size = layer.block[dimension]
            for entry in range(repeat):
                worth += found[:, entry, (places * repeat + entry) // size]
        self.move(torch.as_tensor(linear_sum_assignment(worth.T.numpy(), maximize=True)[1]))

    def move(self, order: Tensor) -> None:
        """Put channel order[p] of the present order in place p, in all layers."""
        self.order = self.order[order]
        for layer, dimension, repeat in self.readings:
            layer.move(dimension, entries(order, repeat))

    def move_to(self, order: Tensor) -> None:
        """Return to an order of before."""
        self.move(self.order.argsort()[order])
