"""Sup-tickets' weight averaging (Yin et al. 2022): the mean of tickets, made sparse again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparse_engine.batch_norm import estimate_batch_norm
from sparse_engine.convert import dense_state_dict, densify
from sparse_engine.pruning import strongest_layouts
from sparse_engine.recut import recut, replace_modules
from sparse_engine.replacement import separate_projections
from sparse_engine.state_dict import load_state

if TYPE_CHECKING:
    from sparse_engine.trainer import Trainer


def average_states(
    run: Trainer, average: Mapping[str, Tensor], share: float, sparsity: float
) -> nn.Module:
    """Return a network that is (1 - share) * average + share * the run's present network.

    The mean lives on the union of both networks' blocks; the strongest of them stay, exactly to
    `sparsity`, and batch-norm statistics are computed again. One dense copy exists meanwhile.
    """
    model = copy.deepcopy(run.network.model)
    load_state(model, average)
    mean = _interpolate(dense_state_dict(model), dense_state_dict(run.network.model), share)
    densify(model).load_state_dict(mean)
    separate_projections(model)
    layouts = strongest_layouts(model, sparsity, run.config)
    replace_modules(model, recut(model, layouts))
    estimate_batch_norm(model, run.training_images())
    return model


@torch.no_grad()
def _interpolate(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Return the weighted mean of two state dicts; counters are the second's."""
    return {
        name: torch.lerp(first[name], value, share) if value.is_floating_point() else value
        for name, value in second.items()
    }
