"""Layers of M members as one layer: member m's channels are a slice of M slices of equal stride.

A sparse layer [O, C] of each member becomes one of [M * O, M * C] whose blocks lie on the diagonal:
rows of a member read columns of that member alone, so nothing is stored or multiplied between
members, and the same kernels run them in one launch. Where they all read one input, [M * O, C]
does. The stride is a multiple of the block; channels between a member's last and the stride are
padding, whose weights are zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.modules import SparseConv2d, SparseLinear
from sparse_engine.models.grouped.layers import (
    GroupedLinear,
    GroupedSparseConv2d,
    GroupedSparseLinear,
)
from sparse_kernels import BlockLayout
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks

UNGROUPED = "run the members one by one"


class MemberSlices(NamedTuple):
    """How members' channels lie in one tensor.

    channels: channels of a member, or a divisor of them where pixels were flattened into channels.
    stride: channels from one member's first to the next one's, by the same unit.
    shared: all members read one slice.
    """

    channels: int
    stride: int
    shared: bool

    def times(self, channels: int) -> MemberSlices:
        """Return the same in channels, for a layer that reads so many of each member."""
        if channels % self.channels:
            raise InputError(f"{channels} channels do not come from {self.channels}")
        factor = channels // self.channels
        return MemberSlices(channels, factor * self.stride, self.shared)


def stack_sparse(
    name: str, layers: Sequence[Any], given: MemberSlices, stride: int
) -> tuple[SparseLayer, MemberSlices]:
    """Return members' layers as one, and how its output lies.

    Args:
        name: for errors.
        layers: sparse, or full.
        given: how the input lies; its stride is a multiple of the block if it is not shared.
        stride: of the output, a multiple of the block.

    Raises:
        InputError: the members' blocks differ.
    """
    blocks = {layer.block for layer in layers if isinstance(layer, SparseLayer)}
    if len(blocks) > 1:
        found = " and ".join(f"{bo}x{bc}" for bo, bc in sorted(blocks))
        raise InputError(f"layer '{name}' has blocks {found} in different members; {UNGROUPED}")
    (block,), members = blocks, len(layers)
    is_conv = isinstance(layers[0], nn.Conv2d | SparseConv2d)
    kind = SparseConv2d if is_conv else SparseLinear
    layers = [
        layer
        if isinstance(layer, SparseLayer)
        else kind.from_dense(layer, density=1.0, block=block)
        for layer in layers
    ]
    layout = diagonal_layout([layer.layout for layer in layers], given, stride)
    first, (out_channels, in_channels) = layers[0], layout.shape[:2]
    if not given.shared:
        kind = GroupedSparseConv2d if is_conv else GroupedSparseLinear
    like = {"device": "meta", "dtype": first.values.dtype, "bias": first.bias is not None}
    if is_conv:
        geometry = {key: getattr(first, key) for key in ("stride", "padding", "dilation")}
        geometry |= {"kernel_size": first.kernel_size, "padding_mode": first.padding_mode}
        grouped: Any = kind(in_channels, out_channels, **geometry, **like, layout=layout)
    else:
        grouped = kind(in_channels, out_channels, **like, layout=layout)
    grouped.layout = layout
    grouped.values = nn.Parameter(torch.cat([_clean_values(layer) for layer in layers]))
    grouped.bias = _parameter(padded_slices([layer.bias for layer in layers], stride))
    grouped.stacked = members
    return grouped, MemberSlices(layers[0].layout.shape[0], stride, False)


def stack_convolutions(
    name: str, layers: Sequence[nn.Conv2d], given: MemberSlices, stride: int
) -> tuple[nn.Conv2d, MemberSlices]:
    """Return members' dense convolutions as one with groups, and how its output lies."""
    first, members = layers[0], len(layers)
    groups = first.groups
    padded = stride != first.out_channels or given.stride != first.in_channels
    each = groups == first.in_channels == first.out_channels
    if groups > 1 and padded and not (each and stride == given.stride):
        raise InputError(f"layer '{name}' has {groups} groups and padded channels; {UNGROUPED}")
    weight = padded_slices([layer.weight for layer in layers], stride)
    if groups == 1:
        weight = F.pad(weight, (0, 0, 0, 0, 0, given.stride - first.in_channels))
        groups = 1 if given.shared else members
    else:
        groups = members * (stride if each else groups)
    grouped = nn.Conv2d(
        given.stride if given.shared else members * given.stride,
        members * stride,
        first.kernel_size,
        first.stride,
        first.padding,
        first.dilation,
        groups,
        first.bias is not None,
        first.padding_mode,
        device="meta",
        dtype=weight.dtype,
    )
    grouped.weight = nn.Parameter(weight)
    grouped.bias = _parameter(padded_slices([layer.bias for layer in layers], stride))
    return grouped, MemberSlices(first.out_channels, stride, False)


def stack_linears(
    layers: Sequence[nn.Linear], given: MemberSlices, stride: int
) -> tuple[nn.Module, MemberSlices]:
    """Return members' dense linear layers as one, and how its output lies."""
    first, members = layers[0], len(layers)
    weight = padded_slices([layer.weight for layer in layers], stride)
    weight = F.pad(weight, (0, given.stride - first.in_features))
    bias = padded_slices([layer.bias for layer in layers], stride)
    after = MemberSlices(first.out_features, stride, False)
    if not given.shared:
        return GroupedLinear(weight.unflatten(0, (members, stride)), bias), after
    grouped = nn.Linear(first.in_features, members * stride, bias is not None, device="meta")
    grouped.weight, grouped.bias = nn.Parameter(weight), _parameter(bias)
    return grouped, after


def stack_norms(layers: Sequence[_BatchNorm], stride: int) -> _BatchNorm:
    """Return members' batch norms as one."""
    first, members = layers[0], len(layers)
    kind = nn.BatchNorm2d if isinstance(first, nn.BatchNorm2d) else nn.BatchNorm1d
    options = (first.eps, first.momentum, first.affine, first.track_running_stats)
    grouped = kind(members * stride, *options, device="meta")
    for key, fill in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        tensor = padded_slices([getattr(layer, key) for layer in layers], stride, fill)
        setattr(grouped, key, _parameter(tensor) if key in ("weight", "bias") else tensor)
    grouped.num_batches_tracked = _copied(first.num_batches_tracked)
    return grouped


def diagonal_layout(
    layouts: Sequence[BlockLayout], given: MemberSlices, stride: int
) -> BlockLayout:
    """Return the layout of members' layers as one: blocks on the diagonal, or below each other.

    Args:
        layouts: of one shape and block; slots are kept, one member's after another's.
        given: how the input lies.
        stride: of the output.
    """
    first, members = layouts[0], len(layouts)
    (_, in_channels, *taps), (bo, bc) = first.shape, first.block
    width = in_channels if given.shared else members * given.stride
    shape, rows = (members * stride, width, *taps), stride // bo
    columns, total = -(-width // bc), members * rows * -(-width // bc) * math.prod(taps)
    found = []
    for member, layout in enumerate(layouts):
        _, in_blocks, *_ = layout.grid
        ids = layout.block_ids.long()
        pair, tap = ids // math.prod(taps), ids % math.prod(taps)
        row = pair // in_blocks + member * rows
        column = pair % in_blocks + (0 if given.shared else member * given.stride // bc)
        moved = (row * columns + column) * math.prod(taps) + tap
        found.append(torch.where(ids < layout.total, moved, total))
    kinds = {layout.taps for layout in layouts}
    active = sum(layout.active for layout in layouts)
    every = kinds.pop() if len(kinds) == 1 else "each"
    return BlockLayout(shape, first.block, torch.cat(found), active, every)


def padded_slices(tensors: Sequence[Any], stride: int, fill: float = 0.0) -> Tensor | None:
    """Return members' tensors one after another, each padded along its first dimension."""
    if tensors[0] is None:
        return None
    after = [0, 0] * (tensors[0].ndim - 1)
    return torch.cat([F.pad(t.detach(), (*after, 0, stride - len(t)), value=fill) for t in tensors])


def _clean_values(layer: SparseLayer) -> Tensor:
    """Return values without what lies past the layer's last channel: there the next member is."""
    layout = layer.layout
    dense = scatter_blocks(layer.values.detach(), layout.tensors(), layout.sizes())
    return gather_blocks(dense, layout.tensors(), layout.sizes())


def _parameter(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor)


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
