"""SparseConv1d and SparseTransposedLinear: nn.Conv1d, and the Conv1D of GPT-2, in sparse blocks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.blocks import BlockChoice
from sparse_engine.layers.data_types import check_data_type
from sparse_engine.layers.dense_kinds import TRANSPOSED, is_transposed
from sparse_engine.layers.modules import (
    GEOMETRY,
    NamedPadding,
    PaddingMode,
    SparseConv2d,
    SparseLinear,
    adopt,
    arguments_of,
    release,
)
from sparse_kernels import BlockLayout, block_conv2d
from sparse_kernels.layout import Taps

Single = int | tuple[int]


class SparseConv1d(SparseLayer):
    """nn.Conv1d with a block-sparse weight [O, C, S]: a convolution of height 1."""

    __call__: Callable[[Tensor], Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Single,
        stride: Single = 1,
        padding: Single | NamedPadding = 0,
        dilation: Single = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        density: float = 0.1,
        block: BlockChoice = (32, 32),
        generator: torch.Generator | None = None,
        layout: BlockLayout | None = None,
        taps: Taps = "each",
    ) -> None:
        """Arguments are those of nn.Conv1d, and the keywords of SparseConv2d.

        Raises:
            ValueError: groups other than 1, or arguments that nn.Conv1d refuses.
        """
        super().__init__()
        check_data_type(dtype)
        if groups != 1:
            raise ValueError(f"SparseConv1d supports groups=1 only, found groups={groups}")
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        like = nn.Conv1d(*sizes, padding_mode=padding_mode, device="meta")
        for name in GEOMETRY:
            setattr(self, name, getattr(like, name))
        shape = (out_channels, in_channels, 1, *like.kernel_size)
        self._make(shape, bias, device, dtype, density, block, generator, layout, taps)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, O, Q] for x [N, C, W] (or the same without N)."""
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._pads(), mode=self.padding_mode), (0,)
        if not isinstance(padding, str):
            padding = (0, *padding)
        where = ((1, *self.stride), padding, (1, *self.dilation))
        image = x.unsqueeze(-2)
        y = block_conv2d(image, self.values, self.layout, self.bias, *where, probe=self._probe)
        self._note_run(image, y.numel() // self.out_channels)
        return y.squeeze(-2)

    def _pads(self) -> list[int]:
        """Return what nn.Conv1d pads on the left and on the right."""
        if not isinstance(self.padding, str):
            return [self.padding[0]] * 2
        total = self.dilation[0] * (self.kernel_size[0] - 1) if self.padding == "same" else 0
        return [total // 2, total - total // 2]

    def _weight_shape(self) -> tuple[int, ...]:
        out_channels, in_channels, _, taps = self.layout.shape
        return out_channels, in_channels, taps

    def block_mask(self) -> Tensor:
        """Return which blocks are active, bool [OB, CB, S]."""
        return self.layout.mask()[:, :, 0]

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv1d,
        *,
        density: float = 0.1,
        block: BlockChoice = (32, 32),
        layout: BlockLayout | None = None,
        taps: Taps = "each",
    ) -> SparseConv1d:
        """Return a sparse layer with the blocks of `conv` that have the largest L1 norm.

        With a `layout` these blocks instead. Dtype, device, bias and training mode are kept.
        """
        return adopt(cls, conv, density, block, layout, taps)

    def to_dense(self) -> nn.Conv1d:
        """Return an nn.Conv1d with the same weight, zeros included."""
        return release(self, nn.Conv1d(**arguments_of(self)))

    def extra_repr(self) -> str:
        """Return the arguments, as print(model) shows them."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"bias={self.bias is not None}, {self._describe_blocks()}"
        )


class SparseTransposedLinear(SparseLinear):
    """The Conv1D of GPT-2 in transformers, a linear layer whose dense weight is [C, O].

    `weight` and dense state dicts have that shape; blocks lie as in a SparseLinear.
    """

    @property
    def nx(self) -> int:
        """Channels of the input, as transformers names them."""
        return self.in_features

    @property
    def nf(self) -> int:
        """Channels of the output."""
        return self.out_features

    def _weight_shape(self) -> tuple[int, ...]:
        return self.layout.shape[1::-1]

    def to_weight(self, dense: Tensor) -> Tensor:
        """Return [C, O] for [O, C, 1, 1]."""
        return dense.flatten(1).t()

    def from_weight(self, weight: Tensor) -> Tensor:
        """Return [O, C, 1, 1] for [C, O]."""
        return weight.t().reshape(self.layout.shape)

    def to_dense(self) -> Any:
        """Return a Conv1D of transformers with the same weight, zeros included."""
        module, name = TRANSPOSED
        dense = getattr(importlib.import_module(module), name)(self.nf, self.nx)
        return release(self, dense)


def sparse_kind(dense: nn.Module) -> Any:
    """Return the class that a dense layer becomes, which has `from_dense`."""
    if is_transposed(dense):
        return SparseTransposedLinear
    if isinstance(dense, nn.Conv1d):
        return SparseConv1d
    return SparseConv2d if isinstance(dense, nn.Conv2d) else SparseLinear
