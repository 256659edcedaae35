"""Layers of M members as one layer, on slices of one tensor: how they are made, and what they do.

A sparse layer [O, C] of each member becomes one of [M * O, M * C] whose blocks lie on the diagonal:
rows of a member read columns of that member alone, so nothing is stored or multiplied between
members, and the same kernels run them in one launch. Where they all read one input, [M * O, C]
does. The slices' stride is a multiple of the block; weights of the padding are zero.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.modules import SparseConv2d, SparseLinear, arguments_of
from sparse_engine.layers.unrecorded import is_traced
from sparse_engine.models.grouped.slices import UNGROUPED, MemberSlices, padded_slices
from sparse_kernels import BlockLayout
from sparse_kernels.dispatch.backend import choose_backend
from sparse_kernels.layout import block_grid
from sparse_kernels.memory_order import by_library
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks, scatter_diagonal


class GroupedLinear(nn.Module):
    """Dense linear layers of M members on an input of M slices; weight [M, O, C]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), _parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., M * C] to [..., M * O]."""
        return _linear(x, self.weight, self.bias)


class GroupedSparseConv2d(SparseConv2d):
    """Sparse convolutions of M members, blocks on the diagonal.

    Where the kernels do not run, blocks are scattered into [M * O, C], for one grouped
    convolution: a dense [M * O, M * C] would be M times the work.
    """

    members = 1

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, M * C, H, W] to [N, M * O, P, Q]."""
        if not _runs_masked(self, x, x.numel() // x.shape[1] // math.prod(self.stride)):
            return super().forward(x)
        x, padding = self._pad(x)
        options = (self.bias, self.stride, padding, self.dilation, self.members)
        weight = _scattered(self)
        return by_library(lambda x: F.conv2d(x, weight, *options), x)


class GroupedSparseLinear(SparseLinear):
    """Sparse linear layers of M members, blocks on the diagonal; see GroupedSparseConv2d."""

    members = 1

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., M * C] to [..., M * O]."""
        if not _runs_masked(self, x, x.numel() // x.shape[-1]):
            return super().forward(x)
        weight = _scattered(self)[:, :, 0, 0].unflatten(0, (self.members, -1))
        return _linear(x, weight, self.bias)


def grouped_sparse(
    name: str, layers: Sequence[Any], given: MemberSlices, stride: int
) -> SparseLayer:
    """Return members' layers as one.

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
    (block,), is_conv = blocks, isinstance(layers[0], nn.Conv2d | SparseConv2d)
    kind = SparseConv2d if is_conv else SparseLinear
    layers = [
        layer
        if isinstance(layer, SparseLayer)
        else kind.from_dense(layer, layout=_full(layer.weight.shape, block))
        for layer in layers
    ]
    first, layout = layers[0], diagonal_layout([layer.layout for layer in layers], given, stride)
    if not given.shared:
        kind = GroupedSparseConv2d if is_conv else GroupedSparseLinear
    unit = "channels" if is_conv else "features"
    sizes = {f"out_{unit}": layout.shape[0], f"in_{unit}": layout.shape[1]}
    grouped: Any = kind(**arguments_of(first) | sizes, layout=layout)
    grouped.values = nn.Parameter(torch.cat([_clean_values(layer) for layer in layers]))
    grouped.bias = _parameter(padded_slices([layer.bias for layer in layers], stride))
    grouped.members = len(layers)
    return grouped


def grouped_convolution(
    name: str, layers: Sequence[nn.Conv2d], given: MemberSlices, stride: int
) -> nn.Conv2d:
    """Return members' dense convolutions as one with groups."""
    first, members = layers[0], len(layers)
    is_padded = stride != first.out_channels or given.stride != first.in_channels
    each = first.groups == first.in_channels == first.out_channels
    if first.groups > 1 and is_padded and not (each and stride == given.stride):
        raise InputError(
            f"layer '{name}' has {first.groups} groups and padded channels; {UNGROUPED}"
        )
    weight = padded_slices([layer.weight for layer in layers], stride)
    if first.groups == 1:
        weight = F.pad(weight, (0, 0, 0, 0, 0, given.stride - first.in_channels))
        groups = 1 if given.shared else members
    else:
        groups = members * (stride if each else first.groups)
    width = given.stride if given.shared else members * given.stride
    sizes = {"in_channels": width, "out_channels": members * stride, "groups": groups}
    grouped = nn.Conv2d(**arguments_of(first) | sizes)
    grouped.weight = nn.Parameter(weight)
    grouped.bias = _parameter(padded_slices([layer.bias for layer in layers], stride))
    return grouped


def grouped_linear(layers: Sequence[nn.Linear], given: MemberSlices, stride: int) -> nn.Module:
    """Return members' dense linear layers as one."""
    first, members = layers[0], len(layers)
    weight = padded_slices([layer.weight for layer in layers], stride)
    weight = F.pad(weight, (0, given.stride - first.in_features))
    bias = padded_slices([layer.bias for layer in layers], stride)
    if not given.shared:
        return GroupedLinear(weight.unflatten(0, (members, stride)), bias)
    grouped = nn.Linear(**arguments_of(first) | {"out_features": members * stride})
    grouped.weight, grouped.bias = nn.Parameter(weight), _parameter(bias)
    return grouped


def grouped_norm(layers: Sequence[_BatchNorm], stride: int) -> _BatchNorm:
    """Return members' batch norms as one."""
    first, members = layers[0], len(layers)
    kind = nn.BatchNorm2d if isinstance(first, nn.BatchNorm2d) else nn.BatchNorm1d
    options = (first.eps, first.momentum, first.affine, first.track_running_stats)
    grouped = kind(members * stride, *options, device="meta")
    for key, fill in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        tensor = padded_slices([getattr(layer, key) for layer in layers], stride, fill)
        setattr(grouped, key, _parameter(tensor) if key in ("weight", "bias") else tensor)
    count = first.num_batches_tracked
    grouped.num_batches_tracked = None if count is None else count.clone()
    return grouped


def clear_columns(channels: int, stride: int, layer: Any, _: Any) -> None:
    """Zero weights past each member's last input channel, which other code may have written to.

    They would multiply what padded channels hold. A hook before forward; compiled code has none.

    Args:
        channels, stride: of a member's slice of the input.
        layer: sparse, or with weights [M * O, C, ...] or [M, O, C]; or what densify made of it.
    """
    if torch.compiler.is_compiling() or is_traced():
        return
    # Not counted as writes: a graph of an earlier forward may wait for its backward.
    if isinstance(layer, SparseLayer):
        columns = torch.arange(layer.block[1], device=layer.values.device)
        columns = layer.layout.slot_index.in_block[:, None] * layer.block[1] + columns
        layer.values.data.masked_fill_((columns % stride >= channels)[:, :, None], 0)
    else:
        weight = layer.weight.data.movedim(2 if isinstance(layer, GroupedLinear) else 1, -1)
        columns = torch.arange(weight.shape[-1], device=weight.device)
        weight.masked_fill_(columns % stride >= channels, 0)


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
    rows, columns, tap_count = stride // bo, -(-width // bc), math.prod(taps)
    ids = []
    for member, layout in enumerate(layouts):
        pair, tap = layout.block_ids.long() // tap_count, layout.block_ids % tap_count
        row = pair // layout.grid[1] + member * rows
        column = pair % layout.grid[1] + (0 if given.shared else member * given.stride // bc)
        own = (row * columns + column) * tap_count + tap
        total = members * rows * columns * tap_count
        ids.append(torch.where(layout.block_ids < layout.total, own, total))
    kinds = {layout.taps for layout in layouts}
    active = sum(layout.active for layout in layouts)
    every = kinds.pop() if len(kinds) == 1 else "each"
    return BlockLayout((members * stride, width, *taps), first.block, torch.cat(ids), active, every)


def _full(shape: Sequence[int], block: tuple[int, int]) -> BlockLayout:
    """Return a layout with every block active, in the blocks of another member."""
    total = math.prod(block_grid(shape, block))
    return BlockLayout(shape, block, torch.arange(total))


def _scattered(layer: Any) -> Tensor:
    """Return the weight [M * O, C, R, S] of blocks on the diagonal."""
    layout = layer.layout
    return scatter_diagonal(layer.values, layout.tensors(), layout.sizes(), layer.members)


def _clean_values(layer: SparseLayer) -> Tensor:
    """Return values without what lies past the layer's last channel: there the next member is."""
    layout = layer.layout
    dense = scatter_blocks(layer.values.detach(), layout.tensors(), layout.sizes())
    return gather_blocks(dense, layout.tensors(), layout.sizes())


def _runs_masked(layer: Any, x: Tensor, positions: int) -> bool:
    """Return whether a member's layer would run masked; together they are as dense as one."""
    out_channels, in_channels, *rest = layer._layout.sizes()
    if layer.is_collecting:
        return False  # the operator's output is what a probe looks at
    members, dtype = layer.members, x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    sizes = (out_channels // members, in_channels // members, *rest)
    density = layer._layout.slots * members / layer._layout.total
    # A choice by the batch, which only a CPU makes, cannot be a constant of compiled code.
    positions_known = None if torch.compiler.is_compiling() else positions
    return _backend(x.device, dtype, sizes, density, positions_known) == "masked"


def _backend(*facts: Any) -> str:
    """Return choose_backend of its arguments, which compiled code asks once."""
    return choose_backend(*facts)


# As torch.compiler.assume_constant_result says it, which would import the compiler.
_backend._dynamo_marked_constant = True


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Map x [..., M * C] to [..., M * O] with weight [M, O, C]."""
    y = torch.einsum("...mc,moc->...mo", x.unflatten(-1, (len(weight), -1)), weight).flatten(-2)
    return y if bias is None else y + bias.to(y.dtype)


def _parameter(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor)
