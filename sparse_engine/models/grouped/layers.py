"""Modules of a grouped network: the layers of M members as one, and what changes between them.

Member m's channels are slice m of M slices of equal width in one tensor.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_engine.layers.modules import SparseConv2d, SparseLinear
from sparse_kernels.dispatch.backend import choose_backend
from sparse_kernels.memory_order import by_library
from sparse_kernels.operators.reference import scatter_diagonal


class Replicate(nn.Module):
    """Gives every member its own copy of what they share."""

    def __init__(self, members: int, dimension: int) -> None:
        super().__init__()
        self.members, self.dimension = members, dimension

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, ...] to [N, M * C, ...]."""
        return torch.cat([x] * self.members, self.dimension)


class Repitch(nn.Module):
    """Changes the padding between members."""

    def __init__(self, members: int, pitch: int, dimension: int) -> None:
        super().__init__()
        self.members, self.pitch, self.dimension = members, pitch, dimension

    def forward(self, x: Tensor) -> Tensor:
        """Map M slices of any pitch to M of this one; what is cut off is padding."""
        parts = x.tensor_split(self.members, self.dimension)
        after = 0 if self.dimension == -1 else x.ndim - 1 - self.dimension
        pad = [0, 0] * after + [0, self.pitch - parts[0].shape[self.dimension]]
        return torch.cat([F.pad(part, pad) for part in parts], self.dimension)


class JoinInputs(nn.Module):
    """Puts members' own inputs side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [M, N, C, ...] to [N, M * C, ...]."""
        return x.transpose(0, 1).flatten(1, 2)


class SplitLogits(nn.Module):
    """Takes members' logits apart."""

    def __init__(self, members: int, classes: int) -> None:
        super().__init__()
        self.members, self.classes = members, classes

    def forward(self, y: Tensor) -> Tensor:
        """Map [N, M * pitch] to [M, N, K]."""
        return y.unflatten(1, (self.members, -1))[:, :, : self.classes].transpose(0, 1)


class GroupedLinear(nn.Module):
    """Dense linear layers of M members on an input of M slices; weight [M, O, C]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., M * C] to [..., M * O]."""
        return _linear(x, self.weight, self.bias)


class GroupedSparseConv2d(SparseConv2d):
    """Sparse convolutions of M members, blocks on the diagonal.

    Where the kernels do not run, blocks are scattered into [M * O, C], for one grouped
    convolution: a dense [M * O, M * C] would be M times the work.
    """

    stacked = 1

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, M * C, H, W] to [N, M * O, P, Q]."""
        if not _runs_masked(self, x, x.numel() // x.shape[1] // math.prod(self.stride)):
            return super().forward(x)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._pads(), mode=self.padding_mode), 0
        options = (self.bias, self.stride, padding, self.dilation, self.stacked)
        weight = _scattered(self)
        return by_library(lambda x: F.conv2d(x, weight, *options), x)


class GroupedSparseLinear(SparseLinear):
    """Sparse linear layers of M members, blocks on the diagonal; see GroupedSparseConv2d."""

    stacked = 1

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., M * C] to [..., M * O]."""
        if not _runs_masked(self, x, x.numel() // x.shape[-1]):
            return super().forward(x)
        weight = _scattered(self)[:, :, 0, 0].unflatten(0, (self.stacked, -1))
        return _linear(x, weight, self.bias)


def _runs_masked(layer: Any, x: Tensor, positions: int) -> bool:
    """Return whether a member's layer would run masked; together they are as dense as one."""
    out_channels, in_channels, *rest = layer.layout.sizes()
    if layer.is_armed:
        return False  # the operator's output is what a probe looks at
    members, dtype = layer.stacked, x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    sizes = (out_channels // members, in_channels // members, *rest)
    density = layer.layout.slots * members / layer.layout.total
    # A choice by the batch, which only a CPU makes, cannot be a constant of compiled code.
    rows = None if torch.compiler.is_compiling() else positions
    return _backend(x.device, dtype, sizes, density, rows) == "masked"


@torch.compiler.assume_constant_result
def _backend(*facts: Any) -> str:
    """Return choose_backend of its arguments, which compiled code asks once."""
    return choose_backend(*facts)


def _scattered(layer: Any) -> Tensor:
    """Return the weight [M * O, C, R, S] of blocks on the diagonal."""
    layout = layer.layout
    return scatter_diagonal(layer.values, layout.tensors(), layout.sizes(), layer.stacked)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Map x [..., M * C] to [..., M * O] with weight [M, O, C]."""
    y = torch.einsum("...mc,moc->...mo", x.unflatten(-1, (len(weight), -1)), weight).flatten(-2)
    return y if bias is None else y + bias.to(y.dtype)
