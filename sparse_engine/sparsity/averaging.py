"""Sup-tickets' weight averaging (Yin et al. 2022): the mean of tickets, made sparse again."""

import copy
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from sparse_engine.layers.batch_norm import estimate_batch_norm
from sparse_engine.layers.state_dict import load_state
from sparse_engine.layers.surgery import (
    Layouts,
    change_layouts,
    replace_modules,
    separate_projections,
)
from sparse_engine.sparsity.sparsify import dense_state_dict, densify


def average_networks(
    model: nn.Module,
    average: Mapping[str, Tensor],
    share: float,
    prune: Callable[[nn.Module], Layouts],
    images: Iterable[Tensor],
) -> nn.Module:
    """Return a network that is (1 - share) * average + share * model, which stays as it is.

    The mean lives on the union of both networks' blocks and is pruned; one dense copy exists
    meanwhile.

    Args:
        model: a network.
        average: state dict of another, of the same architecture.
        share: in [0, 1].
        prune: which blocks of the mean, a dense network, stay.
        images: batches [N, C, H, W] to compute its batch-norm statistics from.
    """
    mean = copy.deepcopy(model)
    load_state(mean, average)
    state = _interpolate(dense_state_dict(mean), dense_state_dict(model), share)
    densify(mean).load_state_dict(state)
    separate_projections(mean)
    replace_modules(mean, change_layouts(mean, prune(mean)))
    estimate_batch_norm(mean, images)
    return mean


@torch.no_grad()
def _interpolate(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Return the weighted mean of two state dicts; counters are the second's."""
    return {
        name: torch.lerp(first[name], value, share) if value.is_floating_point() else value
        for name, value in second.items()
    }
