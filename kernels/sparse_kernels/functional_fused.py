"""Public fused operators: arguments checked, autocast applied, then `fused` or its definition."""

import math

import torch
from torch import Tensor

from sparse_kernels.dispatch.backend import backend_of
from sparse_kernels.functional import Padding, Pair, convolution_geometry, prepare
from sparse_kernels.layout import BlockLayout
from sparse_kernels.operators.batch_norm import Norm
from sparse_kernels.operators.convolution import output_image
from sparse_kernels.operators.fused_convolution import Fused, FusedCall, composed, fused
from sparse_kernels.transforms import is_transformed
from sparse_kernels.triton.sums import TileSums

Geometry = tuple[Pair, Padding, Pair]


def block_conv2d_fused(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    statistics: bool = False,
) -> Fused:
    """Convolve, and in the same passes over memory do what comes before and after.

    block_conv2d is given the batch norm of x, padding of zeros around that; to its result a
    residual is added, and its mean and variance are taken. The Triton kernels store nothing in
    between; elsewhere it is a sequence of operators (`fused_convolution.composed`).

    Args:
        x: [N, C, H, W].
        values, layout, bias, stride, padding, dilation: as of block_conv2d.
        norm: of x; its mean and variance are float32 [C].
        residual: [N, O, P, Q], of the data type of the result.
        statistics: take them.

    Returns:
        y [N, O, P, Q], its statistics and x; see Fused.

    Raises:
        ValueError: shapes or devices that do not fit; TypeError: dtypes that do not.
    """
    geometry = (stride, padding, dilation)
    backend, call = _checked(x, values, layout, bias, geometry, norm, residual, statistics)
    if backend != "triton" or is_transformed():
        return composed(call._replace(values=call.values.to(call.x.dtype)))
    y, sums, x = fused(call)
    none = x.new_empty(0, dtype=torch.float32)
    mean, variance = (none, none) if sums is None else sums.joined().sums[0]
    return Fused(y, mean, variance, x)


def conv2d_by_tile(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    bias: Tensor | None,
    geometry: Geometry,
    norm: Norm | None,
    residual: Tensor | None,
    statistics: bool,
) -> tuple[Tensor, TileSums | None, Tensor]:
    """Return what block_conv2d_fused does, but statistics by tile, for a norm that comes next.

    Only for layers that run on the Triton kernels; geometry: stride, padding, dilation.
    """
    _, call = _checked(x, values, layout, bias, geometry, norm, residual, statistics)
    return fused(call)


def _checked(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    bias: Tensor | None,
    geometry: Geometry,
    norm: Norm | None,
    residual: Tensor | None,
    statistics: bool,
) -> tuple[str, FusedCall]:
    """Return the backend, and the call of `fused` or `composed`.

    Under autocast `fused` casts the values itself, and so gives their gradient in their own type.
    """
    padded, numbers = convolution_geometry(x, layout, *geometry)
    if padded is not x and norm is not None:
        raise ValueError(
            "padding 'same' of an even kernel is not symmetric: it cannot be fused with a "
            "norm of the input, which leaves padding at zero"
        )
    x, values, bias = prepare(padded, values, layout, bias, x.shape[1], values_later=True)
    index, sizes = layout.tensors(), layout.sizes()
    image = output_image(x.shape[2:], layout.shape[2:], *numbers)
    if norm is not None:
        _check_norm(norm, x)
    if residual is not None:
        _check_like("residual", residual, x, [x.shape[0], layout.shape[0], *image], x.dtype)
    backend = backend_of(x, index, sizes, x.shape[0] * math.prod(image))
    call = FusedCall(x, values, index, sizes, numbers, bias, norm, residual, statistics)
    return backend, call


def _check_norm(norm: Norm, x: Tensor) -> None:
    for name in ("mean", "variance", "weight", "bias", "scale", "shift"):
        vector = getattr(norm, name)
        if vector is not None:
            dtype = vector.dtype if name in ("weight", "bias") else torch.float32
            _check_like(f"norm.{name}", vector, x, [x.shape[1]], dtype)


def _check_like(name: str, tensor: Tensor, x: Tensor, shape: list[int], dtype: torch.dtype) -> None:
    if list(tensor.shape) != shape:
        raise ValueError(f"{name} should be {shape}, found {list(tensor.shape)}")
    if (tensor.dtype, tensor.device) != (dtype, x.device):
        found = f"{tensor.dtype} on {tensor.device}"
        raise TypeError(f"{name} should be {dtype} on {x.device}, found {found}")
