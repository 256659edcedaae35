"""Public operators: arguments checked, autocast applied, then the custom op."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_kernels.dispatch.backend import backend_of
from sparse_kernels.layout import BlockLayout
from sparse_kernels.memory_order import by_library, order_of
from sparse_kernels.operators.convolution import conv2d, output_image
from sparse_kernels.operators.dense_gradient import DenseGradientProbe
from sparse_kernels.operators.linear import linear
from sparse_kernels.registration import runnable

Pair = int | Sequence[int]
Padding = Pair | Literal["same", "valid"]


def block_conv2d(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    probe: DenseGradientProbe | None = None,
) -> Tensor:
    """Convolve with a block-sparse weight, as torch.nn.functional.conv2d does with its dense one.

    Args:
        x: [N, C, H, W] or [C, H, W].
        values: [Z, BC, BO], the stored blocks; slot z is block layout.block_ids[z].
        layout: of a weight [O, C, R, S].
        bias: [O] or None.
        stride, dilation: int or (height, width).
        padding: int, (height, width), "valid" or "same" (stride 1 only).
        probe: collects the scores of the dense weight gradient in backward.

    Returns:
        [N, O, P, Q] (or [O, P, Q]), in the memory format of x.

    Raises:
        ValueError: shapes or devices that do not fit; TypeError: dtypes that do not.
    """
    if x.ndim == 3:
        y = block_conv2d(x[None], values, layout, bias, stride, padding, dilation, probe)
        return y[0]
    x, geometry = convolution_geometry(x, layout, stride, padding, dilation)
    given = values if probe is None else probe.view(values)
    x, values, bias = prepare(x, given, layout, bias, x.shape[1])
    index, sizes = layout.tensors(), layout.sizes()

    def run(x: Tensor) -> Tensor:
        y = runnable(conv2d)(x, values, index, sizes, *geometry, bias)
        return y if probe is None else probe.observe(y, x, given, *geometry)

    return by_library(run, x) if _is_masked(x, layout, geometry) else run(x)


def _is_masked(x: Tensor, layout: BlockLayout, geometry: Sequence[Sequence[int]]) -> bool:
    """Return whether a convolution of images in HWNC runs masked, in another order."""
    if order_of(x) != "rows":
        return False
    image = output_image(x.shape[2:], layout.shape[2:], *geometry)
    positions = x.shape[0] * math.prod(image)
    return backend_of(x, layout.tensors(), layout.sizes(), positions) == "masked"


def convolution_geometry(
    x: Tensor, layout: BlockLayout, stride: Pair, padding: Padding, dilation: Pair
) -> tuple[Tensor, tuple[list[int], list[int], list[int]]]:
    """Return x, padded where padding is not symmetric, and stride, padding and dilation."""
    if x.ndim != 4:
        raise ValueError(f"x must be [N, C, H, W] or [C, H, W], found shape {list(x.shape)}")
    stride, dilation = _pair("stride", stride), _pair("dilation", dilation)
    if isinstance(padding, str):
        x, padding = _named_padding(x, padding, layout, stride, dilation)
    padding = _pair("padding", padding, least=0)
    image = output_image(x.shape[2:], layout.shape[2:], stride, padding, dilation)
    if min(image) < 1:
        raise ValueError(
            f"the kernel {list(layout.shape[2:])} with dilation {list(dilation)} is larger than "
            f"the padded image {[x.shape[2] + 2 * padding[0], x.shape[3] + 2 * padding[1]]}"
        )
    return x, (stride, padding, dilation)


def block_linear(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    bias: Tensor | None = None,
    probe: DenseGradientProbe | None = None,
) -> Tensor:
    """Multiply by a block-sparse weight, as torch.nn.functional.linear does with its dense one.

    Args:
        x: [..., C].
        values: [Z, BC, BO].
        layout: of a weight [O, C].
        bias: [O] or None.
        probe: collects the scores of the dense weight gradient in backward.

    Returns:
        [..., O].

    Raises:
        ValueError: shapes or devices that do not fit; TypeError: dtypes that do not.
    """
    if x.ndim == 0:
        raise ValueError("x must be [..., C], found a tensor without dimensions")
    if layout.shape[2:] != (1, 1):
        raise ValueError(f"a linear layer needs a layout (O, C), found {layout.shape}")
    if x.ndim == 1:
        return block_linear(x[None], values, layout, bias, probe)[0]
    given = values if probe is None else probe.view(values)
    x, values, bias = prepare(x, given, layout, bias, x.shape[-1])
    y = runnable(linear)(x, values, layout.tensors(), layout.sizes(), bias)
    return y if probe is None else probe.observe(y, x, given)


def same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Return (left, right, top, bottom) that keeps the image's size at stride 1."""
    pads: list[int] = []
    for size, step in zip(reversed(kernel), reversed(dilation), strict=True):
        total = step * (size - 1)
        pads += [total // 2, total - total // 2]
    return pads


def _named_padding(
    x: Tensor, padding: str, layout: BlockLayout, stride: list[int], dilation: list[int]
) -> tuple[Tensor, list[int]]:
    if padding == "valid":
        return x, [0, 0]
    if padding != "same":
        raise ValueError(f"padding must be numbers, 'same' or 'valid', found '{padding}'")
    if stride != [1, 1]:
        raise ValueError(f"padding 'same' needs stride 1, found {stride}")
    left, right, top, bottom = same_padding(layout.shape[2:], dilation)
    if left == right and top == bottom:
        return x, [top, left]
    return F.pad(x, (0, right - left, 0, bottom - top)), [top, left]


def _pair(name: str, value: Pair, least: int = 1) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value)
    if len(pair) == 1:
        pair = pair * 2
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{name} must be one or two integers of at least {least}, found {value}")
    return pair


def prepare(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    bias: Tensor | None,
    channels: int,
    values_later: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check what fits and return it as autocast wants it; values_later: but for the values."""
    out_channels, in_channels = layout.shape[:2]
    expected = [layout.slots, layout.block[1], layout.block[0]]
    if channels != in_channels:
        raise ValueError(f"x should have {in_channels} channels, found {channels}")
    if list(values.shape) != expected:
        raise ValueError(f"values should be [Z, BC, BO] = {expected}, found {list(values.shape)}")
    if bias is not None and list(bias.shape) != [out_channels]:
        raise ValueError(f"bias should be [{out_channels}], found {list(bias.shape)}")
    # A layout keeps its numbers on a real device when the layer is on the meta device.
    kept = None if x.is_meta else layout
    for name, tensor in (("values", values), ("layout", kept), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"x is on {x.device} but {name} on {tensor.device}; move one of them")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, found {x.dtype}")
    found = values.dtype
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, bias = _cast(x, dtype), _cast(bias, dtype)
        values = values if values_later else _cast(values, dtype)
        found = found if found == torch.float64 else dtype
    for name, dtype in (("values", found), ("bias", x.dtype if bias is None else bias.dtype)):
        if dtype != x.dtype:
            raise TypeError(f"{name} should be {x.dtype} like x, found {dtype}")
    return x, values, bias


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a tensor as autocast gives it to an operator, which leaves float64 alone."""
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)
