"""One ranking of all layers' blocks: the budget of a network goes where the scores are highest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparse_engine.errors import InputError


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
