"""Layers that are given other blocks between phases: pruned, rewound, or read from a file.

Within a phase shapes never change; here they do, so a layer is replaced by a new one, and the
optimizer state of the blocks that stay is carried over.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from torch.optim import Optimizer

from sparse_engine.layers.attention import ProjectedAttention, why_whole
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.candidates import (
    compiled_modules,
    dense_layers,
    shared_parameters,
    skip_reasons,
)
from sparse_engine.layers.dense_kinds import planned_shape
from sparse_engine.layers.modules import SparseLinear
from sparse_engine.layers.other_kinds import sparse_kind
from sparse_engine.layers.replacement.replace import has_sparse_layers, replace_layers
from sparse_kernels import BlockLayout

Layouts = Mapping[str, BlockLayout | None]


def budget_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of all layers that count in the budget, sparse or full."""
    skipped = skip_reasons(model)
    dense = {name for name, _ in dense_layers(model)} - set(skipped)
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer) or name in dense:
            yield name, module


def used_layouts(model: nn.Module) -> dict[str, BlockLayout | None]:
    """Return a copy of every layer's layout by name, without unused slots; None for a full one."""
    return {name: _compact(layer) for name, layer in budget_layers(model)}


def change_layout(layer: nn.Module, layout: BlockLayout | None) -> nn.Module:
    """Return a layer with the same weight in other blocks; None makes an ordinary module.

    The bias is the same parameter. One dense weight exists meanwhile.
    """
    twin = layer.to_dense() if isinstance(layer, SparseLayer) else layer
    if layout is not None:
        twin = sparse_kind(twin).from_dense(twin, layout=layout)
    twin.bias = layer.bias
    return twin


def change_layouts(model: nn.Module, layouts: Layouts) -> dict[str, nn.Module]:
    """Return new layers with the given layouts; those that are full and stay so are left out."""
    layers = dict(budget_layers(model))
    return {
        name: change_layout(layers[name], layout)
        for name, layout in layouts.items()
        if layout is not None or isinstance(layers[name], SparseLayer)
    }


def replace_modules(
    model: nn.Module, replaced: Mapping[str, nn.Module], optimizer: Optimizer | None = None
) -> None:
    """Put modules in the places of those that have their names, as `replace_layers` does."""
    new = {model.get_submodule(name): module for name, module in replaced.items()}
    replace_layers(model, new, optimizer)


def model_densities(model: nn.Module) -> dict[str, float]:
    """Return the density of every sparse layer by name."""
    return {n: m.density for n, m in model.named_modules() if isinstance(m, SparseLayer)}


def model_density(model: nn.Module) -> float:
    """Return the share of a model's weights that lie in active blocks, layers taken together."""
    weights = {n: math.prod(weight_shape(layer)) for n, layer in budget_layers(model)}
    densities = model_densities(model)
    return sum(densities.get(n, 1.0) * w for n, w in weights.items()) / sum(weights.values())


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's dense weight as it is planned, (O, C[, R, S])."""
    if isinstance(layer, SparseLayer):
        return layer.layout.shape[: 2 if isinstance(layer, SparseLinear) else 4]
    return planned_shape(layer)


def _compact(layer: nn.Module) -> BlockLayout | None:
    if not isinstance(layer, SparseLayer):
        return None
    layout = layer.layout
    ids = layout.block_ids.sort().values[: layout.active]
    return BlockLayout(layout.shape, layout.block, ids.clone(), layout.active, layout.taps)


def separate_projections(model: nn.Module) -> None:
    """Put a ProjectedAttention in the place of every nn.MultiheadAttention inside a model."""
    replace_layers(model, _separated(model))


@contextmanager
def separated_projections(model: nn.Module) -> Iterator[dict[nn.Module, nn.Module]]:
    """Take attentions apart for a while, so that their projections are layers by name.

    Yields:
        What stands for each attention. Where it is to stay, `replace_layers` the one by the other;
        those without sparse layers are put back afterwards, as if nothing had been.
    """
    separated = _separated(model)
    _swap_children(model, separated)
    try:
        yield separated
    finally:
        back = {new: old for old, new in separated.items() if not has_sparse_layers(new)}
        _swap_children(model, back)


def _separated(model: nn.Module) -> dict[nn.Module, nn.Module]:
    kept = {model, *compiled_modules(model)}
    shared = shared_parameters(model)
    return {
        module: ProjectedAttention(module)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        and module not in kept
        and why_whole(module, shared) is None
    }


def _swap_children(model: nn.Module, swapped: Mapping[nn.Module, nn.Module]) -> None:
    by_id = {id(old): new for old, new in swapped.items()}  # a weak proxy has no hash
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            parent._modules[name] = by_id.get(id(child), child)
