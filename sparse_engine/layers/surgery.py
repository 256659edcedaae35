"""Layers that are given other blocks between phases: pruned, rewound, or read from a file.

Within a phase shapes never change; here they do, so a layer is replaced by a new one, and the
optimizer state of the blocks that stay is carried over.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from sparse_engine.layers.attention import ProjectedAttention, why_whole
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.candidates import (
    compiled_modules,
    dense_layers,
    shared_parameters,
    skip_reasons,
)
from sparse_engine.layers.modules import SparseConv2d, SparseLinear
from sparse_engine.schema import check_like, demand
from sparse_kernels import BlockLayout
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks

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
    twin = layer.to_dense() if isinstance(layer, SparseConv2d | SparseLinear) else layer
    if layout is not None:
        kind = SparseConv2d if isinstance(twin, nn.Conv2d) else SparseLinear
        twin = kind.from_dense(twin, layout=layout)
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
    """Put modules in the places of those that have their names, in place.

    An optimizer's state of the blocks that both have is carried over.
    """
    for name, module in replaced.items():
        if optimizer is not None:
            carry_state(optimizer, model.get_submodule(name), module)
        parent, _, child = name.rpartition(".")
        # Convolution weights lie as the rest of the model's.
        setattr(model.get_submodule(parent), child, module.to(memory_format=torch.channels_last))


@torch.no_grad()
def carry_state(optimizer: Optimizer, old: nn.Module, new: nn.Module) -> None:
    """Give the weight of a new layer the old one's place in the optimizer, and its state.

    State of blocks that both have is kept, that of others is zero.
    """
    before, after = weight_parameter(old), weight_parameter(new)
    for group in optimizer.param_groups:
        group["params"] = [after if p is before else p for p in group["params"]]
    state = optimizer.state.pop(before, None)
    if state:
        optimizer.state[after] = {
            key: _moved(value, old, new)
            if isinstance(value, Tensor) and value.shape == before.shape
            else value
            for key, value in state.items()
        }


def weight_parameter(layer: nn.Module) -> nn.Parameter:
    """Return the parameter that holds a layer's weight."""
    return layer.values if isinstance(layer, SparseLayer) else layer.weight


def model_densities(model: nn.Module) -> dict[str, float]:
    """Return the density of every sparse layer by name."""
    return {n: m.density for n, m in model.named_modules() if isinstance(m, SparseLayer)}


def model_density(model: nn.Module) -> float:
    """Return the share of a model's weights that lie in active blocks, layers taken together."""
    weights = {n: math.prod(weight_shape(layer)) for n, layer in budget_layers(model)}
    densities = model_densities(model)
    return sum(densities.get(n, 1.0) * w for n, w in weights.items()) / sum(weights.values())


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's dense weight, (O, C[, R, S])."""
    if isinstance(layer, SparseLayer):
        return layer.layout.shape[: 2 if isinstance(layer, SparseLinear) else 4]
    return tuple(layer.weight.shape)


def _compact(layer: nn.Module) -> BlockLayout | None:
    if not isinstance(layer, SparseLayer):
        return None
    layout = layer.layout
    ids = layout.block_ids.sort().values[: layout.active]
    return BlockLayout(layout.shape, layout.block, ids.clone(), layout.active, layout.taps)


def _moved(state: Tensor, old: nn.Module, new: nn.Module) -> Tensor:
    dense = state
    if isinstance(old, SparseLayer):
        dense = scatter_blocks(state, old.layout.tensors(), old.layout.sizes())
    if isinstance(new, SparseLayer):
        dense = dense.reshape(new.layout.shape)
        return gather_blocks(dense, new.layout.tensors(), new.layout.sizes())
    return dense.reshape(new.weight.shape)


def replace_children(model: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the places of others inside a model; hooks of forward and backward go along.

    Args:
        model: changed in place; it cannot be replaced itself.
        replaced: the new module by the old one, which may be at several places.
    """
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in replaced:
                parent._modules[name] = replaced[child]
    for old, new in replaced.items():
        for name, value in vars(old).items():
            if name.startswith(("_forward_", "_backward_", "_is_full_backward")):
                setattr(new, name, value)


def separate_projections(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Put a ProjectedAttention in the place of every nn.MultiheadAttention inside a model.

    Returns:
        The replaced module by the one in its place.
    """
    kept = {model, *compiled_modules(model)}
    shared = shared_parameters(model)
    replaced: dict[nn.Module, nn.Module] = {
        module: ProjectedAttention(module)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        and module not in kept
        and why_whole(module, shared) is None
    }
    replace_children(model, replaced)
    return {new: old for old, new in replaced.items()}


@contextmanager
def separated_projections(model: nn.Module) -> Iterator[None]:
    """Take attentions apart; where no layer has become sparse within, they are put back."""
    replaced = separate_projections(model)
    try:
        yield
    finally:
        replace_children(model, {n: o for n, o in replaced.items() if not has_sparse_layers(n)})


def has_sparse_layers(module: nn.Module) -> bool:
    """Return whether a module is a sparse layer or has one inside."""
    return any(isinstance(m, SparseLayer) for m in module.modules())


def state_tensors(optimizer: Optimizer, parameter: Parameter) -> list[Tensor]:
    """Return the state that has the parameter's shape: momenta of SGD, Adam, AdamW and others."""
    state = optimizer.state.get(parameter, {})
    return [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape]


def zero_slots(optimizer: Optimizer, parameter: Parameter, slots: Tensor) -> None:
    """Zero the state of some slots of values [Z, BC, BO]: a grown block starts without momentum.

    Source: Evci et al. 2020, whose code resets the momentum of new connections.
    """
    for state in state_tensors(optimizer, parameter):
        state.index_fill_(0, slots, 0)


def start_momenta(optimizer: Optimizer) -> None:
    """Give every parameter of SGD the momentum 0, from which the first step is like any other."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class Momenta:
    """The state of an optimizer as a checkpoint holds it; what the optimizer is set to stays."""

    def __init__(self, optimizer: Optimizer, rate: Tensor) -> None:
        """Be those of an optimizer, whose learning rate is a tensor."""
        self._optimizer, self._rate = optimizer, rate

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return self._optimizer.state_dict()

    def check_state(self, state: Any) -> None:
        """Raise InputError unless a state has the momenta of these parameters."""
        demand(isinstance(state, Mapping), "optimizer", "an object", state)
        check_like(state.get("state"), self.state_dict()["state"], "optimizer.state")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the momenta in state_dict()."""
        self._optimizer.load_state_dict({**self.state_dict(), "state": state["state"]})
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
