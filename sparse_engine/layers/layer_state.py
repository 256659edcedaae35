"""What a sparse layer takes from a state dict: compact values, or the weight of a dense layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparse_engine.layers.ids.block_check import AVERAGED, are_averaged, block_signs
from sparse_engine.layers.plan import strongest_blocks
from sparse_engine.shards import check_whole
from sparse_kernels import BlockLayout
from sparse_kernels.operators.reference import gather_blocks

# Of a state dict, dense or sparse.
PARTS = ("weight", "values", "block_ids", "block_check")


class StateError(ValueError):
    """A state that a layer cannot take; the message begins with the name of the part."""


class Holder(Protocol):
    """What a layer is asked about its weight."""

    values: nn.Parameter

    def _weight_shape(self) -> tuple[int, ...]: ...

    def from_weight(self, weight: Tensor) -> Tensor:
        """Return a weight as [O, C, R, S]."""
        ...


def own_state(
    layer: Holder, layout: BlockLayout, state: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    """Return a state dict whose parts are those of a layer, and move its layout to the ids there.

    Args:
        layer: whose values are kept where the state has ids alone.
        layout: the layer's; it is written to if ids and values are right.
        state: dense (`weight`, of which the strongest blocks are taken) or sparse.
        prefix: of the layer's names in it.

    Raises:
        StateError: a part of another kind or shape, ids of no such layer, or means of states with
            different blocks.
    """
    own = dict(state)
    for name in PARTS:
        if prefix + name in own and not _can_take(layer, own[prefix + name]):
            raise StateError(f"{name} should be an ordinary tensor with numbers")
    values, ids = own.get(prefix + "values"), own.get(prefix + "block_ids")
    if values is None and prefix + "weight" in own:
        values, ids = _strongest(layer, layout, own.pop(prefix + "weight").detach())
        own[prefix + "values"] = values
    if ids is not None:
        _follow(layer, layout, ids, values, own.get(prefix + "block_check"))
        own[prefix + "block_ids"] = layout.block_ids.clone()
    elif values is not None:  # nobody knows where they belong: keep the present ones
        own[prefix + "values"] = layer.values
    # Earlier states have no signs.
    own[prefix + "block_check"] = block_signs(layout.block_ids)
    return own


def _strongest(layer: Holder, layout: BlockLayout, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return values and ids of the strongest blocks by L1 norm, as many as are active."""
    check_whole(layer.values, layer)
    found, expected = list(weight.shape), list(layer._weight_shape())
    if found != expected:
        raise StateError(f"weight should be {expected}, found {found}")
    dense = layer.from_weight(weight)
    ids = strongest_blocks(dense, layout)
    chosen = BlockLayout(layout.shape, layout.block, ids, layout.active, layout.taps)
    return gather_blocks(dense, chosen.tensors(), chosen.sizes()), ids


def _follow(
    layer: Holder, layout: BlockLayout, ids: Tensor, values: Tensor | None, signs: Tensor | None
) -> None:
    """Move the layout to ids, if the values that come with them fit."""
    try:
        active = layout.validate(ids)
    except ValueError as error:
        raise StateError(f"block_ids: {error}") from None
    if signs is not None and are_averaged(signs):
        raise StateError(f"values: {AVERAGED}")
    if values is not None and values.shape == layer.values.shape:
        layout.update_(ids.to(layout.device), active)


def _can_take(layer: Holder, value: Any) -> bool:
    """Return whether a part of a state dict is a tensor that can be copied from."""
    usual = isinstance(value, Tensor) and value.layout is torch.strided
    empty = usual and value.is_meta and not layer.values.is_meta
    return usual and not (empty or value.is_quantized or value.is_nested)
