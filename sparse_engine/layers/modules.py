"""SparseConv2d and SparseLinear: nn.Conv2d and nn.Linear that store only their active blocks."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.blocks import BlockChoice
from sparse_engine.layers.plan import LayerPlan
from sparse_kernels import BlockLayout, block_conv2d, block_linear
from sparse_kernels.functional import same_padding
from sparse_kernels.operators.reference import gather_blocks

Pair = int | tuple[int, int]
GEOMETRY = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    "padding_mode",
)


class SparseConv2d(SparseLayer):
    """nn.Conv2d with a block-sparse weight; blocks are stored or absent."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        density: float = 0.1,
        block: BlockChoice = (32, 32),
        generator: torch.Generator | None = None,
        layout: BlockLayout | None = None,
        taps: str = "each",
    ) -> None:
        """Arguments are those of nn.Conv2d, and:

        density: active blocks / all blocks, rounded to a whole number of at least one block.
        block: (BO, BC), or "auto" for the widest of 32, 64 and 128 that divides the channels.
        generator: for the choice of blocks and the initial values.
        layout: the blocks to use in place of a random choice.
        taps: "each" tap of a pair of channel blocks is stored or absent by itself, "all" together.

        Raises:
            ValueError: groups other than 1, or arguments that nn.Conv2d refuses.
        """
        super().__init__()
        if groups != 1:
            raise ValueError(f"SparseConv2d supports groups=1 only, found groups={groups}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.dilation, self.padding_mode = _pair(dilation), padding_mode
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        nn.Conv2d(**geometry(self), device="meta")  # which knows what its arguments may be
        shape = (out_channels, in_channels, *self.kernel_size)
        self._make(shape, bias, device, dtype, density, block, generator, layout, taps)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, O, P, Q] for x [N, C, H, W] (or the same without N)."""
        x, padding = self._pad(x)
        weight, where = (self.values, self.layout, self.bias), (self.stride, padding, self.dilation)
        y = block_conv2d(x, *weight, *where, probe=self._probe)
        self._note_run(x, y.numel() // self.out_channels)
        return y

    def _pad(self, x: Tensor) -> tuple[Tensor, Any]:
        """Return the input, padded here unless with zeros, and the padding that is left to do."""
        if self.padding_mode == "zeros":
            return x, self.padding
        if self.padding == "same":
            pads = same_padding(self.kernel_size, self.dilation)
        else:
            height, width = (0, 0) if isinstance(self.padding, str) else self.padding
            pads = [width, width, height, height]
        return F.pad(x, pads, mode=self.padding_mode), 0

    def block_mask(self) -> Tensor:
        """Return which blocks are active, bool [OB, CB, R, S]."""
        return self.layout.mask()

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        *,
        density: float = 0.1,
        block: BlockChoice = (32, 32),
        layout: BlockLayout | None = None,
        taps: str = "each",
    ) -> SparseConv2d:
        """Return a sparse layer with the blocks of `conv` that have the largest L1 norm.

        With a `layout` these blocks instead. Dtype, device, bias and training mode are kept.
        """
        shape = tuple(conv.weight.shape)
        if layout is None:
            layout = LayerPlan.full("", shape, block, taps).at(density).strongest(conv.weight)
        like = {"bias": conv.bias is not None, "device": "meta", "dtype": conv.weight.dtype}
        return _adopt(cls(**geometry(conv), **like, layout=layout), conv)

    def to_dense(self) -> nn.Conv2d:
        """Return an nn.Conv2d with the same weight, zeros included."""
        like = {"bias": self.bias is not None, "device": "meta", "dtype": self.values.dtype}
        return _release(self, nn.Conv2d(**geometry(self), **like))

    def extra_repr(self) -> str:
        """Return the arguments, as print(model) shows them."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"bias={self.bias is not None}, {self._describe_blocks()}"
        )


class SparseLinear(SparseLayer):
    """nn.Linear with a block-sparse weight."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        density: float = 0.1,
        block: BlockChoice = (32, 32),
        generator: torch.Generator | None = None,
        layout: BlockLayout | None = None,
    ) -> None:
        """Arguments are those of nn.Linear, and the keywords of SparseConv2d but `taps`."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        shape = (out_features, in_features)
        self._make(shape, bias, device, dtype, density, block, generator, layout)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., O] for x [..., C]."""
        y = block_linear(x, self.values, self.layout, self.bias, probe=self._probe)
        self._note_run(x, y.numel() // self.out_features)
        return y

    def block_mask(self) -> Tensor:
        """Return which blocks are active, bool [OB, CB]."""
        return self.layout.mask()[:, :, 0, 0]

    def _weight_shape(self) -> tuple[int, ...]:
        return self.layout.shape[:2]

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        *,
        density: float = 0.1,
        block: BlockChoice = (32, 32),
        layout: BlockLayout | None = None,
    ) -> SparseLinear:
        """Return a sparse layer with the blocks of `linear` that have the largest L1 norm.

        With a `layout` these blocks instead. Dtype, device, bias and training mode are kept.
        """
        shape = tuple(linear.weight.shape)
        if layout is None:
            layout = LayerPlan.full("", shape, block).at(density).strongest(linear.weight)
        sizes = (linear.in_features, linear.out_features, linear.bias is not None)
        sparse = cls(*sizes, "meta", linear.weight.dtype, layout=layout)
        return _adopt(sparse, linear)

    def to_dense(self) -> nn.Linear:
        """Return an nn.Linear with the same weight, zeros included."""
        sizes = (self.in_features, self.out_features, self.bias is not None)
        return _release(self, nn.Linear(*sizes, device="meta", dtype=self.values.dtype))

    def extra_repr(self) -> str:
        """Return the arguments, as print(model) shows them."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self._describe_blocks()}"
        )


def geometry(conv: Any) -> dict[str, Any]:
    """Return what a convolution, dense or sparse, was made with: arguments of nn.Conv2d."""
    return {name: getattr(conv, name) for name in GEOMETRY}


def _pair(value: Pair) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) not in (1, 2):
        raise ValueError(f"sizes must be one or two integers, found {value}")
    return pair[0], pair[-1]


def _adopt(sparse: Any, dense: Any) -> Any:
    """Give a layer made on the meta device the weights of a dense one."""
    if not dense.weight.is_meta:
        layout = sparse.layout = sparse.layout.to(dense.weight.device)
        weight = dense.weight.detach().reshape(layout.shape)
        sparse.values = nn.Parameter(gather_blocks(weight, layout.tensors(), layout.sizes()))
    sparse.values.requires_grad_(dense.weight.requires_grad)
    sparse.bias = _copied(dense.bias)
    return sparse.train(dense.training)


def _release(sparse: Any, dense: Any) -> Any:
    weight = sparse.dense_weight().detach().clone()
    dense.weight = nn.Parameter(weight, requires_grad=sparse.values.requires_grad)
    dense.bias = _copied(sparse.bias)
    return dense.train(sparse.training)


def _copied(bias: nn.Parameter | None) -> nn.Parameter | None:
    if bias is None:
        return None
    return nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
