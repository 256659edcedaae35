"""SparseConv2d and SparseLinear: nn.Conv2d and nn.Linear that store only their active blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.blocks import BlockChoice
from sparse_engine.layers.data_types import check_data_type
from sparse_engine.layers.dense_kinds import is_transposed, planned, planned_shape
from sparse_engine.layers.plan import LayerPlan
from sparse_kernels import BlockLayout, block_conv2d, block_linear
from sparse_kernels.functional import same_padding
from sparse_kernels.layout import Taps
from sparse_kernels.memory_order import channels_last, order_of
from sparse_kernels.operators.reference import gather_blocks

Pair = int | tuple[int, int]
NamedPadding = Literal["same", "valid"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
GEOMETRY = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    "padding_mode",
)


class SparseConv2d(SparseLayer):
    """nn.Conv2d with a block-sparse weight; blocks are stored or absent.

    After `to(memory_format=torch.channels_last)`, of the layer or of a model around it, outputs are
    in that order whatever the input's, as those of nn.Conv2d are.
    """

    is_channels_last = False

    __call__: Callable[[Tensor], Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | NamedPadding = 0,
        dilation: Pair = 1,
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
        """Arguments are those of nn.Conv2d, and:

        density: weights in active blocks / all weights, to the nearest whole block, at least one.
        block: (BO, BC), or "auto" for the widest of 32, 64 and 128 that divides the channels. A
            width above 31 that does not divide them becomes a smaller one that does, if any does.
        generator: for the choice of blocks and the initial values.
        layout: the blocks to use in place of a random choice.
        taps: of a pair of channel blocks, "each" tap is stored or absent by itself, those of a
            kernel's "row" together, or "all".

        Raises:
            ValueError: groups other than 1, or arguments that nn.Conv2d refuses.
        """
        super().__init__()
        check_data_type(dtype)
        if groups != 1:
            raise ValueError(f"SparseConv2d supports groups=1 only, found groups={groups}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.dilation, self.padding_mode = _pair(dilation), padding_mode
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        # Which knows what its arguments may be.
        nn.Conv2d(**{name: getattr(self, name) for name in GEOMETRY}, device="meta")
        shape = (out_channels, in_channels, *self.kernel_size)
        self._make(shape, bias, device, dtype, density, block, generator, layout, taps)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, O, P, Q] for x [N, C, H, W] (or the same without N)."""
        if self.is_channels_last and x.ndim == 4 and order_of(x) == "contiguous":
            x = channels_last(x)
        x, padding = self._pad(x)
        weight, where = (self.values, self.layout, self.bias), (self.stride, padding, self.dilation)
        y = block_conv2d(x, *weight, *where, probe=self._probe)
        self._note_run(x, y.numel() // self.out_channels)
        return y

    def _apply(self, fn: Any, recurse: bool = True) -> SparseConv2d:
        super()._apply(fn, recurse)
        # `to` changes the order of tensors of four dimensions, of which this layer has none.
        order = torch.channels_last if self.is_channels_last else torch.contiguous_format
        twin = fn(torch.empty((2, 2, 2, 2), memory_format=order))
        self.is_channels_last = is_channels_last(twin)
        return self

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
        taps: Taps = "each",
    ) -> SparseConv2d:
        """Return a sparse layer with the blocks of `conv` that have the largest L1 norm.

        With a `layout` these blocks instead. Dtype, device, bias and training mode are kept.
        """
        sparse = adopt(cls, conv, density, block, layout, taps)
        sparse.is_channels_last = is_channels_last(conv.weight)
        return sparse

    def to_dense(self) -> nn.Conv2d:
        """Return an nn.Conv2d with the same weight, zeros included."""
        dense = release(self, nn.Conv2d(**arguments_of(self)))
        return dense.to(memory_format=torch.channels_last) if self.is_channels_last else dense

    def extra_repr(self) -> str:
        """Return the arguments, as print(model) shows them."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"bias={self.bias is not None}, {self._describe_blocks()}"
        )


class SparseLinear(SparseLayer):
    """nn.Linear with a block-sparse weight."""

    __call__: Callable[[Tensor], Tensor]

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
        check_data_type(dtype)
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
        return adopt(cls, linear, density, block, layout)

    def to_dense(self) -> nn.Linear:
        """Return an nn.Linear with the same weight, zeros included."""
        return release(self, nn.Linear(**arguments_of(self)))

    def extra_repr(self) -> str:
        """Return the arguments, as print(model) shows them."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self._describe_blocks()}"
        )


def arguments_of(layer: Any) -> dict[str, Any]:
    """Return the arguments of the dense layer's class for a layer like this one, dense or sparse.

    It is made on the meta device, to be given its parameters.
    """
    weight = layer.values if isinstance(layer, SparseLayer) else layer.weight
    if is_transposed(layer):
        settings = {"in_features": layer.nx, "out_features": layer.nf}
    else:
        names = GEOMETRY if hasattr(layer, "kernel_size") else ("in_features", "out_features")
        settings = {name: getattr(layer, name) for name in names}
    return {**settings, "bias": layer.bias is not None, "device": "meta", "dtype": weight.dtype}


def is_channels_last(weight: Tensor) -> bool:
    """Return whether a weight [O, C, R, S] lies in memory as `to(memory_format=...)` leaves it.

    Strides of dimensions of size 1 count, as they do for PyTorch's convolutions.
    """
    _, c, h, w = weight.shape
    return weight.stride() == (h * w * c, 1, w * c, c) != (c * h * w, h * w, w, 1)


def _pair(value: Pair) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) not in (1, 2):
        raise ValueError(f"sizes must be one or two integers, found {value}")
    return pair[0], pair[-1]


def adopt(
    kind: Any,
    dense: Any,
    density: float,
    block: BlockChoice,
    layout: BlockLayout | None,
    taps: Taps = "each",
) -> Any:
    """Return a sparse layer with a dense one's weights in a layout, or in the strongest blocks.

    kind: the class, whose arguments are those of the dense layer's and `layout`.
    """
    check_data_type(dense.weight.dtype)
    if layout is None:
        plan = LayerPlan.full("", planned_shape(dense), block, taps).at(density)
        layout = plan.strongest(planned(dense, dense.weight))
    sparse = kind(**arguments_of(dense), layout=layout)
    if not dense.weight.is_meta:
        layout = sparse.layout = layout.to(dense.weight.device)
        weight = planned(dense, dense.weight.detach()).reshape(layout.shape)
        sparse.values = nn.Parameter(gather_blocks(weight, layout.tensors(), layout.sizes()))
    sparse.values.requires_grad_(dense.weight.requires_grad)
    sparse.bias = _copied(dense.bias)
    return sparse.train(dense.training)


def release(sparse: Any, dense: Any) -> Any:
    """Return a dense layer, on whatever device, with a sparse one's weight and bias."""
    if "bias" not in sparse._parameters:
        raise InputError(
            f"the bias of a {type(sparse).__name__} is made by a tool of torch.nn.utils: remove it "
            "first, as by prune.remove(layer, 'bias') or remove_parametrizations(layer, 'bias')"
        )
    weight = sparse.dense_weight().detach().clone(memory_format=torch.contiguous_format)
    dense.weight = nn.Parameter(weight, requires_grad=sparse.values.requires_grad)
    dense.bias = _copied(sparse.bias)
    return dense.train(sparse.training)


def _copied(bias: nn.Parameter | None) -> nn.Parameter | None:
    if bias is None:
        return None
    return nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
