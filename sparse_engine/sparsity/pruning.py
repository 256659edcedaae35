"""Which blocks of a trained network are the strongest: pruning, exactly to a budget.

A block's score is its L1 norm over its number of real weights, a mean magnitude, so that narrower
and ragged blocks compete as equals; with 1x1 blocks it is the magnitude of the papers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.dense_kinds import planned
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.layers.surgery import budget_layers, weight_shape
from sparse_engine.sparsity.distribution import Sparsity
from sparse_kernels import BlockLayout
from sparse_kernels.operators.reference import block_norms, block_sums


@torch.no_grad()
def strongest_layouts(
    model: nn.Module, what: Sparsity, scope: str
) -> dict[str, BlockLayout | None]:
    """Return the layout that each layer would have after pruning; None for a full one.

    Args:
        model: dense or sparse; only blocks that are active now can stay.
        what: its sparsity is met exactly in whole blocks, every layer keeping one at least; its
            blocks are those of layers that are full now.
        scope: "global" ranks all blocks of the network, "layer" those of each layer, and of each
            kind within it (block_kinds.py), as many as the distribution says.

    Raises:
        InputError: the budget leaves a layer without a block.
    """
    layers = dict(budget_layers(model))
    shapes = {name: weight_shape(layer) for name, layer in layers.items()}
    plans = {plan.name: _present(plan, layers[plan.name]) for plan in what.full(shapes)}
    scores = {
        name: _scores(layers[name], plan).view(-1, plan.group).mean(1)
        for name, plan in plans.items()
    }
    if scope == "layer":
        kept = {plan.name: plan for plan in what.plans(shapes)}
        masks = {n: _top(scores[n], plan, kept[n], layers[n]) for n, plan in plans.items()}
    else:
        weights = {name: _weights(plan, scores[name]) for name, plan in plans.items()}
        masks = select_globally(scores, weights, 1 - what.sparsity)
    return _layouts(plans, masks)


def _present(plan: LayerPlan, layer: nn.Module) -> LayerPlan:
    """Return the plan with the blocks that a sparse layer has."""
    if not isinstance(layer, SparseLayer):
        return plan
    total = layer.layout.total
    return replace(plan, block=layer.block, total=total, active=total)


def _layouts(
    plans: Mapping[str, LayerPlan], masks: Mapping[str, Tensor]
) -> dict[str, BlockLayout | None]:
    """Return the layouts of which groups are active by mask; None for a layer that is full."""
    return {
        name: None if bool(mask.all()) else plans[name].layout(mask.nonzero().flatten())
        for name, mask in masks.items()
    }


def _top(scores: Tensor, present: LayerPlan, kept: LayerPlan, layer: nn.Module) -> Tensor:
    """Return the mask of the groups with the highest scores, as many of each kind as are kept.

    Args:
        scores: [groups].
        present: the plan with the layer's own blocks; kept: that of the distribution.
        layer: where too few of a kind are active, others stay in their place.
    """
    if present.block != kept.block:
        kept = present.at(kept.density)
    kinds, count = present.kinds, kept.active // kept.group
    there = layer.layout.groups_by_kind if isinstance(layer, SparseLayer) else kinds.groups
    counts = kinds.fit(min(count, sum(there)), [0] * len(there), there)
    best = torch.zeros_like(scores, dtype=torch.bool)
    return best.index_fill_(0, kinds.top(scores, counts), True)


def _scores(layer: nn.Module, plan: LayerPlan) -> Tensor:
    """Return mean magnitudes of blocks [OB * CB * R * S], -inf for those that are not active."""
    if not isinstance(layer, SparseLayer):
        first = BlockLayout(plan.shape, plan.block, torch.zeros(1, dtype=torch.int32))
        dense = planned(layer, layer.weight.detach().float()).reshape(first.shape)
        scores = block_norms(dense, first.sizes())
    else:
        scores = layer.values.new_full((plan.total + 1,), -torch.inf, dtype=torch.float32)
        values, outside = layer.values.detach().float(), layer.layout.outside()
        values = values if outside is None else values.masked_fill(outside, 0)
        scores[layer.layout.block_ids.long()] = values.abs().sum((1, 2))
        scores = scores[:-1]
    weights = _weights(plan, scores)
    if isinstance(weights, int):
        return scores / (weights / plan.total)
    return scores / (weights.repeat_interleave(plan.group) / plan.group).float()


def _weights(plan: LayerPlan, scores: Tensor) -> int | Tensor:
    """Return the real weights of each group, float64 [groups] on the scores' device.

    Where all groups are alike, return the weights of them together.
    """
    kinds = plan.kinds
    if len(kinds.groups) == 1:
        return plan.weights
    groups = torch.arange(sum(kinds.groups), device=scores.device)
    sizes = torch.tensor(kinds.weights, dtype=torch.float64, device=scores.device)
    return sizes[kinds.of_groups(groups)]


def scored_layouts(
    full: Sequence[LayerPlan], scores: Mapping[str, Tensor], sparsity: float
) -> dict[str, BlockLayout | None]:
    """Return the blocks with the highest scores of a network; None for a layer that is full.

    Args:
        full: the plans of all layers with every block active.
        scores: of single weights, a tensor of the weight's shape for each layer; a block's score
            is the mean over its real weights.
        sparsity: share of all weights that is absent; exact in whole blocks.

    Raises:
        InputError: a layer without scores, scores of another shape or not finite, or a budget too
            small to leave every layer one block.
    """
    plans = {plan.name: plan for plan in full}
    grouped, weights = {}, {}
    for name, plan in plans.items():
        given = scores.get(name)
        if given is None or tuple(given.shape) != plan.shape or not given.isfinite().all():
            what = "no scores" if given is None else f"scores {list(given.shape)}"
            raise InputError(
                f"layer '{name}' has {what}: they should be finite and of shape {list(plan.shape)}"
            )
        sizes = (*plan.shape, 1, 1)[:4] + plan.block
        sums = block_sums(given.float().reshape(sizes[:4]), sizes).view(-1, plan.group).sum(1)
        size = weights[name] = _weights(plan, sums)
        grouped[name] = sums * len(sums) / size if isinstance(size, int) else sums / size.float()
    return _layouts(plans, select_globally(grouped, weights, 1 - sparsity))


def select_globally(
    scores: Mapping[str, Tensor], weights: Mapping[str, int | Tensor], density: float
) -> dict[str, Tensor]:
    """Choose the blocks with the highest scores over all layers, within a budget of weights.

    Args:
        scores: [groups] of each layer, -inf for a group that must not be chosen.
        weights: of each layer, which its groups have equal parts of, or [groups] of each group.
        density: of all weights that may stay; the choice misses it by less than the smallest
            block that is left.

    Returns:
        Which blocks stay, bool [blocks] by layer; the best one of each layer always does.

    Raises:
        InputError: the best block of each layer is already too much.
    """
    sizes = [_each(weights[name], len(s)) for name, s in scores.items()]
    ranked = torch.cat([_best_first(s.float()) for s in scores.values()]).cpu()
    order = ranked.argsort(descending=True, stable=True)
    order = order[: int((ranked > -torch.inf).sum())]
    size = torch.cat(sizes)[order]
    budget = density * sum(int(w.sum()) if isinstance(w, Tensor) else w for w in weights.values())
    slack = 1e-6 * float(size.min())
    spent = size.cumsum(0)
    count = int((spent <= budget + slack).sum())
    if count < len(scores):
        raise InputError(
            f"the budget leaves a layer without a block: one block in each of {len(scores)} "
            f"layers is already more than the share {density:.4g} of all weights; "
            "lower the sparsity or use smaller blocks"
        )
    chosen = torch.zeros(len(ranked), dtype=torch.bool)
    chosen[order[:count]] = True
    left = budget - float(spent[count - 1])
    # Where blocks differ in size, smaller ones fill what the next in order is too large for.
    for place in range(count, len(order)):
        if left + slack < float(size.min()):
            break
        if float(size[place]) <= left + slack:
            chosen[order[place]] = True
            left -= float(size[place])
    parts = chosen.split([len(s) for s in scores.values()])
    return {name: part.to(scores[name].device) for name, part in zip(scores, parts)}


def _each(weights: int | Tensor, groups: int) -> Tensor:
    """Return the weights of each group, float64 on the CPU."""
    if isinstance(weights, Tensor):
        return weights.double().cpu()
    return torch.full((groups,), weights / groups, dtype=torch.float64)


def _best_first(scores: Tensor) -> Tensor:
    return scores.index_fill(0, scores.argmax(), torch.inf)
