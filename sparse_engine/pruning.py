"""Which blocks of a trained network are the strongest: pruning, exactly to a budget.

A block's score is its L1 norm over the size of its layer's average block, so that layers with
narrower blocks compete as equals; with 1x1 blocks it is the magnitude of the papers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparse_engine.config import Config
from sparse_engine.distribution import full_plans, plan_layers
from sparse_engine.layer import SparseLayer
from sparse_engine.ranking import select_globally
from sparse_engine.recut import budget_layers, weight_shape
from sparse_kernels import BlockLayout
from sparse_kernels.layout import block_grid
from sparse_kernels.reference import block_norms


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
