"""Which blocks of a trained network are the strongest: pruning, exactly to a budget.

A block's score is its L1 norm over the size of its layer's average block, so that layers with
narrower blocks compete as equals; with 1x1 blocks it is the magnitude of the papers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.blocks import LayerBlocks
from sparse_engine.layers.surgery import budget_layers, weight_shape
from sparse_engine.sparsity.distribution import full_plans, plan_layers
from sparse_kernels import BlockLayout
from sparse_kernels.layout import block_grid
from sparse_kernels.operators.reference import block_norms, block_sums


@torch.no_grad()
def strongest_layouts(
    model: nn.Module, sparsity: float, config: Config
) -> dict[str, BlockLayout | None]:
    """Return the layout that each layer would have after pruning; None for a full one.

    Args:
        model: dense or sparse; only blocks that are active now can stay.
        sparsity: of all weights, exactly in whole blocks, every layer keeping one at least.
        config: `blocks` for layers that are full now, `prune_scope` ("global" ranks all blocks
            of the network, "layer" those of each layer within the run's distribution).

    Raises:
        InputError: the budget leaves a layer without a block.
    """
    layers = dict(budget_layers(model))
    shapes = {name: weight_shape(layer) for name, layer in layers.items()}
    full = {plan.name: plan for plan in full_plans(shapes, config.blocks, config.taps)}
    groups = {name: plan.group for name, plan in full.items()}
    blocks = {
        name: layer.block if isinstance(layer, SparseLayer) else full[name].block
        for name, layer in layers.items()
    }
    scores = {
        name: _scores(layer, blocks[name]).view(-1, groups[name]).mean(1)
        for name, layer in layers.items()
    }
    if config.prune_scope == "layer":
        plans = plan_layers(shapes, sparsity, config.layer_densities, config.blocks, config.taps)
        masks = {plan.name: _top(scores[plan.name], plan.active // plan.group) for plan in plans}
    else:
        weights = {name: math.prod(shape) for name, shape in shapes.items()}
        masks = select_globally(scores, weights, 1 - sparsity)
    return {
        name: None
        if bool(mask.all())
        else BlockLayout(
            shapes[name],
            blocks[name],
            mask.repeat_interleave(groups[name]).nonzero().flatten(),
            taps=config.taps,
        )
        for name, mask in masks.items()
    }


def _top(scores: Tensor, count: int) -> Tensor:
    """Return the mask of at most `count` groups with the highest scores above -inf."""
    best = torch.zeros_like(scores, dtype=torch.bool)
    best.index_fill_(0, scores.topk(count).indices, True)
    return best & (scores > -torch.inf)


def _scores(layer: nn.Module, block: tuple[int, int]) -> Tensor:
    """Return mean magnitudes of blocks [OB * CB * R * S], -inf for those that are not active."""
    shape = weight_shape(layer)
    total = math.prod(block_grid(shape, block))
    size = math.prod(shape) / total
    if not isinstance(layer, SparseLayer):
        first = BlockLayout(shape, block, torch.zeros(1, dtype=torch.int32))
        dense = layer.weight.detach().float().reshape(first.shape)
        return block_norms(dense, first.sizes()) / size
    scores = layer.values.new_full((total + 1,), -torch.inf, dtype=torch.float32)
    norms = layer.values.detach().float().abs().sum((1, 2)) / size
    scores[layer.layout.block_ids.long()] = norms
    return scores[:-1]


def scored_layouts(
    shapes: Mapping[str, Sequence[int]],
    scores: Mapping[str, Tensor],
    sparsity: float,
    block: LayerBlocks,
    taps: str = "each",
) -> dict[str, BlockLayout | None]:
    """Return the blocks with the highest scores of a network; None for a layer that is full.

    Args:
        shapes: weight shape (O, C[, R, S]) of each layer by name.
        scores: of single weights, a tensor of the weight's shape for each layer; a block's score
            is the sum over its weights over the weights of its layer's average block.
        sparsity: share of all weights that is absent; exact in whole blocks.
        block, taps: see plan_layers.

    Raises:
        InputError: a layer without scores, scores of another shape or not finite, a pattern that
            matches no layer, or a budget too small to leave every layer one block.
    """
    plans = full_plans(shapes, block, taps)
    grouped = {}
    for plan in plans:
        found = scores.get(plan.name)
        if found is None or tuple(found.shape) != plan.shape or not found.isfinite().all():
            what = "no scores" if found is None else f"scores {list(found.shape)}"
            raise InputError(
                f"layer '{plan.name}' has {what}: they should be finite and of shape "
                f"{list(plan.shape)}"
            )
        sizes = (*plan.shape, 1, 1)[:4] + plan.block
        sums = block_sums(found.float().reshape(sizes[:4]), sizes).view(-1, plan.group).sum(1)
        grouped[plan.name] = sums * len(sums) / plan.weights
    masks = select_globally(grouped, {p.name: p.weights for p in plans}, 1 - sparsity)
    layouts: dict[str, BlockLayout | None] = dict.fromkeys(masks)
    for plan in plans:
        mask = masks[plan.name]
        if not mask.all():
            ids = mask.repeat_interleave(plan.group).nonzero().flatten()
            layouts[plan.name] = BlockLayout(plan.shape, plan.block, ids, taps=taps)
    return layouts


def select_globally(
    scores: Mapping[str, Tensor], weights: Mapping[str, int], density: float
) -> dict[str, Tensor]:
    """Choose the blocks with the highest scores over all layers, within a budget of weights.

    Args:
        scores: [blocks] of each layer, -inf for a block that must not be chosen.
        weights: of each layer; a block counts as its layer's average block.
        density: of all weights that may stay; the choice misses it by less than the smallest
            block that is left.

    Returns:
        Which blocks stay, bool [blocks] by layer; the best one of each layer always does.

    Raises:
        InputError: the best block of each layer is already too much.
    """
    sizes = [
        torch.full((len(s),), weights[name] / len(s), dtype=torch.float64)
        for name, s in scores.items()
    ]
    ranked = torch.cat([_best_first(s.float()) for s in scores.values()]).cpu()
    order = ranked.argsort(descending=True, stable=True)
    order = order[: int((ranked > -torch.inf).sum())]
    size = torch.cat(sizes)[order]
    budget = density * sum(weights.values())
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


def _best_first(scores: Tensor) -> Tensor:
    return scores.index_fill(0, scores.argmax(), torch.inf)
