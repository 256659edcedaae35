"""A network that is cut into coarser blocks while it trains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sparse_engine.config import Config
from sparse_engine.distribution import LayerPlan, plan_layers
from sparse_engine.flops import model_densities
from sparse_engine.layer import SparseLayer, magnitude_layout
from sparse_engine.recut import budget_layers, recut, weight_shape


def coarse_plans(model: nn.Module, config: Config) -> list[LayerPlan]:
    """Return how many blocks each layer has in the blocks of a configuration.

    They are those of a network that starts with these blocks; where scores have chosen the
    layers' densities (--start), the present ones are kept.
    """
    shapes = {name: weight_shape(layer) for name, layer in budget_layers(model)}
    densities = config.layer_densities
    if config.start != "random":
        densities = {**dict.fromkeys(shapes, 1.0), **model_densities(model)}
    return plan_layers(shapes, config.sparsity or 0.0, densities, config.blocks, config.taps)


@torch.no_grad()
def coarsen(model: nn.Module, plans: Sequence[LayerPlan]) -> dict[str, nn.Module]:
    """Return the layers of a model in the blocks of plans, by name; those that stay are left out.

    The blocks with the largest L1 norm stay, as many as planned. Weights inside them are as they
    were, and zero where the finer blocks were absent.
    """
    layers = dict(budget_layers(model))
    return recut(
        model,
        {
            plan.name: None
            if plan.is_dense
            else magnitude_layout(_dense_weight(layer), plan.block, plan.active, plan.taps)
            for plan in plans
            if not _is_cut(layer := layers[plan.name], plan)
        },
    )


def _is_cut(layer: nn.Module, plan: LayerPlan) -> bool:
    if not isinstance(layer, SparseLayer):
        return plan.is_dense
    return (layer.block, layer.layout.active) == (plan.block, plan.active)


def _dense_weight(layer: nn.Module) -> torch.Tensor:
    return layer.dense_weight() if isinstance(layer, SparseLayer) else layer.weight
