"""State dicts of networks with other blocks than the model at hand: checked, loaded, cut down.

A layer becomes as sparse or full as the state says. No kernel sees an index that its layout does
not have.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer, weight_parameter
from sparse_engine.layers.ids.block_check import SIGNS
from sparse_engine.layers.layer_state import PARTS
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.layers.surgery import (
    budget_layers,
    change_layout,
    replace_modules,
    weight_shape,
)
from sparse_engine.schema import check_like, demand
from sparse_kernels import BlockLayout
from sparse_kernels.block_kinds import BlockKinds
from sparse_kernels.layout import Taps, block_grid, clamp_block


def check_model(
    model: nn.Module, state: Any, name: str = "model", taps: Taps | None = None
) -> None:
    """Raise InputError unless a state dict is of a model, whatever blocks its layers have.

    Args:
        model: dense or sparse.
        state: what a file holds.
        name: of the state, for errors.
        taps: which of a kernel's taps come and go as one; as in the model unless given.
    """
    demand(isinstance(state, Mapping), name, "a state dict", state)
    like, taps = dict(model.state_dict()), taps or taps_of(model)
    for layer_name, layer in budget_layers(model):
        for part in PARTS:
            like.pop(f"{layer_name}.{part}", None)
        shape, dtype = weight_shape(layer), weight_parameter(layer).dtype
        ids = f"{layer_name}.block_ids"
        if ids in state:
            values = state.get(f"{layer_name}.values")
            _check_blocks(state[ids], values, shape, dtype, taps, f"{name}.{layer_name}")
            like[ids], like[f"{layer_name}.values"] = state[ids], values
            check = f"{layer_name}.block_check"  # which earlier states do not have
            like |= {check: torch.empty(SIGNS, device="meta")} if check in state else {}
        else:
            own = layer._weight_shape() if isinstance(layer, SparseLayer) else layer.weight.shape
            like[f"{layer_name}.weight"] = torch.empty(own, dtype=dtype, device="meta")
    check_like(state, like, name)
    for key, value in state.items():
        finite = not value.is_floating_point() or bool(value.isfinite().all())
        demand(finite, f"{name}.{key}", "finite")


def load_state(model: nn.Module, state: Mapping[str, Tensor], taps: Taps | None = None) -> None:
    """Load a state dict into a model, whose layers become as sparse or full as the state's.

    Args:
        model: dense or sparse.
        state: that check_model takes.
        taps: as there.

    Raises:
        RuntimeError: as load_state_dict does, for a state of another model.
    """
    replaced = {}
    taps = taps or taps_of(model)
    for name, layer in budget_layers(model):
        values, ids = state.get(f"{name}.values"), state.get(f"{name}.block_ids")
        if values is not None and ids is not None and values.ndim == 3 and ids.numel():
            layout = _layout_for(layer, values, ids, taps)
            if not isinstance(layer, SparseLayer) or not _same_sizes(layer.layout, layout):
                replaced[name] = change_layout(layer, layout)
                _keep_final_count(layer, replaced[name])
        elif isinstance(layer, SparseLayer) and f"{name}.weight" in state:
            replaced[name] = change_layout(layer, None)
    replace_modules(model, replaced)
    model.load_state_dict(state)


def taps_of(model: nn.Module) -> str:
    """Return what a model's layers do with the taps of a block; "each" if none is sparse."""
    return next((m.taps for m in model.modules() if isinstance(m, SparseLayer)), "each")


def saved_densities(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the density of every sparse layer of a model's state dict by name."""
    found = {}
    for name, layer in budget_layers(model):
        if f"{name}.block_ids" in state:
            shape, values = weight_shape(layer), state[f"{name}.values"]
            kinds = BlockKinds.of(shape, values.shape[:0:-1])
            counts = kinds.count(state[f"{name}.block_ids"])
            found[name] = kinds.weights_of(counts) / math.prod(shape)
    return found


def without_unused_slots(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's state dict with nothing but active blocks, as load_state takes it."""
    compact = dict(state)
    for name, layer in budget_layers(model):
        if f"{name}.block_ids" in state:
            values, ids = state[f"{name}.values"], state[f"{name}.block_ids"]
            used = ids < math.prod(block_grid(weight_shape(layer), values.shape[:0:-1]))
            compact[f"{name}.values"], compact[f"{name}.block_ids"] = values[used], ids[used]
            compact.pop(f"{name}.block_check", None)
    return compact


def _check_blocks(
    ids: Any, values: Any, shape: tuple[int, ...], dtype: torch.dtype, taps: Taps, name: str
) -> None:
    """Check block ids [Z] and values [Z, BC, BO] of one layer against each other and its weight."""
    fits = isinstance(values, Tensor) and values.dtype == dtype and values.ndim == 3
    demand(fits and values.numel() > 0, f"{name}.values", f"{dtype} [Z, BC, BO]", values)
    slots, block = len(values), tuple(values.shape[:0:-1])
    clamped = clamp_block(block, *shape[:2])
    demand(block == clamped, f"{name}.values", f"blocks of at most {clamped}", values)
    total = math.prod(block_grid(shape, block))
    demand(slots <= total, f"{name}.values", f"at most the {total} blocks of the weight", values)
    demand(isinstance(ids, Tensor) and ids.dtype == torch.int32, f"{name}.block_ids", "int32", ids)
    try:
        BlockLayout(shape, block, torch.arange(slots), taps=taps).validate(ids)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


def _layout_for(layer: nn.Module, values: Tensor, ids: Tensor, taps: Taps) -> BlockLayout:
    """Return a layout of the sizes of a saved one; its ids are checked when they are loaded."""
    empty = BlockLayout(weight_shape(layer), values.shape[:0:-1], torch.arange(len(ids)), taps=taps)
    empty.active = int((ids < empty.total).sum())
    return empty.to(weight_parameter(layer).device)


def _keep_final_count(old: nn.Module, new: nn.Module) -> None:
    """Give a layer in other blocks the final density that gradual pruning goes to."""
    if not isinstance(old, SparseLayer) or not isinstance(new, SparseLayer):
        return
    if old.final_active is not None and old.block != new.block:
        before, after = _plan(old.layout), _plan(new.layout)
        final = replace(before, active=old.final_active).density
        new.final_active = after.at(final).active


def _plan(layout: BlockLayout) -> LayerPlan:
    return LayerPlan("", layout.shape, layout.block, layout.total, layout.active, layout.taps)


def _same_sizes(first: BlockLayout, second: BlockLayout) -> bool:
    return (first.block, first.slots) == (second.block, second.slots)
