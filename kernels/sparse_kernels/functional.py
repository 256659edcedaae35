"""Public operators: arguments checked, autocast applied, then the custom op."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_kernels.backend import backend_of
from sparse_kernels.convolution import conv2d, output_image
from sparse_kernels.fused import Fused, composed, fused
from sparse_kernels.layout import BlockLayout
from sparse_kernels.matmul import linear
from sparse_kernels.norm import Norm
from sparse_kernels.probe import GradientProbe
from sparse_kernels.sums import TileSums

Pair = int | Sequence[int]


def block_conv2d(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    probe: GradientProbe | None = None,
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
    x, values, bias = _prepare(x, values, layout, bias, x.shape[1])
    y = conv2d(x, values, layout.tensors(), layout.sizes(), *geometry, bias)
    return y if probe is None else probe.observe(y, x, *geometry)


def block_conv2d_fused(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    statistics: bool = False,
) -> Fused:
    """Convolve, and in the same passes over memory do what comes before and after.

    block_conv2d is given the batch norm of x, padding of zeros around that; to its result a
    residual is added, it is rectified, and its mean and variance are taken. The Triton kernels
    store nothing in between; elsewhere it is a sequence of operators (`fused.composed`).

    Args:
        x: [N, C, H, W].
        values, layout, bias, stride, padding, dilation: as of block_conv2d.
        norm: of x; its mean and variance are float32 [C].
        residual: [N, O, P, Q], of the data type of the result.
        relu: rectify the result.
        statistics: take them.

    Returns:
        y [N, O, P, Q], its statistics and x; see Fused.

    Raises:
        ValueError: shapes or devices that do not fit; TypeError: dtypes that do not.
    """
    surroundings = (norm, residual, relu, statistics)
    geometry = (stride, padding, dilation)
    backend, arguments = _fused_arguments(x, values, layout, bias, *geometry, *surroundings)
    if backend != "triton":
        return composed(*arguments)
    y, sums, x = fused(*arguments)
    mean, variance = y.new_empty((2, 0)) if sums is None else sums.joined().sums[0]
    return Fused(y, mean, variance, x)


def convolve_by_tile(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    bias: Tensor | None,
    geometry: tuple[Pair, Pair, Pair],
    norm: Norm | None,
    residual: Tensor | None,
    statistics: bool,
) -> tuple[Tensor, TileSums | None, Tensor]:
    """Return what block_conv2d_fused does, its statistics by tile, for the norm that reads them.

    Only for layers that run on the Triton kernels; geometry: stride, padding, dilation.
    """
    surroundings = (norm, residual, False, statistics)
    return fused(*_fused_arguments(x, values, layout, bias, *geometry, *surroundings)[1])


def _fused_arguments(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    norm: Norm | None,
    residual: Tensor | None,
    relu: bool,
    statistics: bool,
) -> tuple[str, tuple[Any, ...]]:
    """Return the backend and the arguments of `fused` and `composed`, checked.

    Under autocast the kernels cast the values themselves, and so give their gradient in full.
    """
    padded, geometry = convolution_geometry(x, layout, stride, padding, dilation)
    if padded is not x and norm is not None:
        raise ValueError(
            "padding 'same' of an even kernel is not symmetric: it cannot be fused with a "
            "norm of the input, which leaves padding at zero"
        )
    x, values, bias = _prepare(padded, values, layout, bias, x.shape[1], values_later=True)
    index, sizes = layout.tensors(), layout.sizes()
    image = output_image(x.shape[2:], layout.shape[2:], *geometry)
    if norm is not None:
        _check_norm(norm, x)
    if residual is not None:
        _check_like("residual", residual, x, [x.shape[0], layout.shape[0], *image], x.dtype)
    backend = backend_of(x, index, sizes, x.shape[0] * math.prod(image))
    values = values if backend == "triton" else values.to(x.dtype)
    return backend, (x, values, index, sizes, geometry, bias, norm, residual, relu, statistics)


def _check_norm(norm: Norm, x: Tensor) -> None:
    for name in ("mean", "variance", "weight", "bias"):
        vector = getattr(norm, name)
        dtype = torch.float32 if name in ("mean", "variance") else vector.dtype
        _check_like(f"norm.{name}", vector, x, [x.shape[1]], dtype)


def _check_like(name: str, tensor: Tensor, x: Tensor, shape: list[int], dtype: torch.dtype) -> None:
    if list(tensor.shape) != shape:
        raise ValueError(f"{name} should be {shape}, found {list(tensor.shape)}")
    if (tensor.dtype, tensor.device) != (dtype, x.device):
        found = f"{tensor.dtype} on {tensor.device}"
        raise TypeError(f"{name} should be {dtype} on {x.device}, found {found}")


def convolution_geometry(
    x: Tensor, layout: BlockLayout, stride: Pair, padding: Pair | str, dilation: Pair
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
    probe: GradientProbe | None = None,
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
    x, values, bias = _prepare(x, values, layout, bias, x.shape[-1])
    if x.ndim == 1:
        return block_linear(x[None], values, layout, bias, probe)[0]
    y = linear(x, values, layout.tensors(), layout.sizes(), bias)
    return y if probe is None else probe.observe(y, x)


def block_linear_fused(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    statistics: bool = False,
) -> Fused:
    """Do with block_linear what block_conv2d_fused does; x is [..., C], y and residual [..., O]."""
    images = x.reshape(-1, x.shape[-1])[:, :, None, None]
    if residual is not None:
        residual = residual.reshape(-1, residual.shape[-1])[:, :, None, None]
    switches = {"norm": norm, "residual": residual, "relu": relu, "statistics": statistics}
    y, mean, variance, images = block_conv2d_fused(images, values, layout, bias, **switches)
    y = y.reshape(*x.shape[:-1], layout.shape[0])
    return Fused(y, mean, variance, images.reshape(x.shape))


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


def _prepare(
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
