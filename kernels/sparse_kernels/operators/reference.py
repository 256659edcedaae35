"""The definition of every operator in plain PyTorch: scatter the blocks, then the dense operator.

It is the `masked` path on any device, and what each kernel is compared with.
Shapes: x [N, C, H, W] or [..., C], values [Z, BC, BO]; index = BlockLayout.tensors() and
sizes = (O, C, R, S, BO, BC) = BlockLayout.sizes(). Of images in rows results are channels_last.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_kernels.layout import SlotIndex, block_grid
from sparse_kernels.memory_order import in_order, library_order, memory_format, order_of


def scatter_blocks(
    values: Tensor, index: Sequence[Tensor], sizes: Sequence[int], channels_last: bool = False
) -> Tensor:
    """Return the dense weight [O, C, R, S] of values [Z, BC, BO]; differentiable.

    With channels_last it is stored as [O, R, S, C], which spares convolutions of such images a
    copy (half of the time of 512 channels at 2x2 pixels and batch 32, on a CPU).
    """
    out_channels, in_channels, taps_h, taps_w, bo, bc = sizes
    ob, cb, _, _ = block_grid(sizes[:4], (bo, bc))
    # What unused slots write goes to one element, or one row of blocks, past the end.
    if bo == bc == 1:
        flat = values.new_zeros(out_channels * in_channels * taps_h * taps_w + 1)
        flat = flat.index_copy(0, index[0].long(), values.flatten())
        return flat[:-1].view(sizes[:4])
    rows, columns = (ob + 1) * bo, cb * bc
    if channels_last:
        dense = values.new_zeros(rows, taps_h, taps_w, columns).permute(0, 3, 1, 2)
    else:
        dense = values.new_zeros(rows, columns, taps_h, taps_w)
    out_block, in_block, tap_h, tap_w = SlotIndex.of(index)
    places = dense.unflatten(0, (ob + 1, bo)).unflatten(2, (cb, bc))
    places[out_block, :, in_block, :, tap_h, tap_w] = values.transpose(1, 2)
    return dense[:out_channels, :in_channels]


def gather_blocks(dense: Tensor, index: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Return values [Z, BC, BO] of a weight [O, C, R, S]; zero in unused slots."""
    bo, bc = sizes[4:]
    ob, cb, taps_h, taps_w = block_grid(sizes[:4], (bo, bc))
    used = (index[0] < ob * cb * taps_h * taps_w)[:, None, None]
    if bo == bc == 1:
        flat = dense.reshape(-1)
        values = flat.index_select(0, index[0].clamp(max=len(flat) - 1))
        return torch.where(used, values[:, None, None], 0)
    out_block, in_block, tap_h, tap_w = SlotIndex.of(index)
    places = _by_block(dense, sizes)
    values = places[out_block.clamp(max=ob - 1), :, in_block, :, tap_h, tap_w]
    return torch.where(used, values.transpose(1, 2), 0).contiguous()


def block_norms(dense: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the L1 norm of every block of a weight [O, C, R, S], as [OB * CB * R * S]."""
    return _by_block(dense, sizes).abs().sum((1, 3)).flatten()


def block_sums(dense: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the sum over every block of a weight [O, C, R, S], as [OB * CB * R * S]."""
    return _by_block(dense, sizes).sum((1, 3)).flatten()


def _by_block(dense: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return a weight [O, C, R, S] as [OB, BO, CB, BC, R, S]."""
    bo, bc = sizes[4:]
    ob, cb, _, _ = block_grid(sizes[:4], (bo, bc))
    return _whole_blocks(dense, sizes).unflatten(0, (ob, bo)).unflatten(2, (cb, bc))


def _whole_blocks(dense: Tensor, sizes: Sequence[int]) -> Tensor:
    """Pad a weight [O, C, R, S] with zeros to a multiple of the block."""
    out_channels, in_channels, _, _, bo, bc = sizes
    pad = (0, 0, 0, 0, 0, -in_channels % bc, 0, -out_channels % bo)
    return F.pad(dense, pad) if any(pad) else dense


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: Sequence[Tensor],
    sizes: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return y [N, O, P, Q]."""
    x = library_order(x)
    weight = scatter_blocks(values, index, sizes, memory_format(x) == torch.channels_last)
    return F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation))


def conv2d_input_grad(
    grad: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    sizes: Sequence[int],
    image: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return dx [N, C, H, W] for dy [N, O, P, Q], where image = (H, W)."""
    grad = library_order(grad)
    weight = scatter_blocks(values, index, sizes, memory_format(grad) == torch.channels_last)
    shape = (grad.shape[0], sizes[1], *image)
    x = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format(grad))
    return _conv_backward(grad, x, weight, stride, padding, dilation, 0)


def conv2d_weight_grad(
    x: Tensor,
    grad: Tensor,
    index: Sequence[Tensor],
    sizes: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return dvalues [Z, BC, BO]."""
    dense = conv2d_dense_weight_grad(x, grad, sizes, stride, padding, dilation)
    return gather_blocks(dense, index, sizes)


def conv2d_dense_weight_grad(
    x: Tensor,
    grad: Tensor,
    sizes: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the gradient [O, C, R, S] that a dense weight would have."""
    x = library_order(x)
    grad = in_order(grad, order_of(x))
    kind = {"dtype": x.dtype, "device": x.device, "memory_format": memory_format(x)}
    weight = torch.empty(list(sizes[:4]), **kind)
    return _conv_backward(grad, x, weight, stride, padding, dilation, 1)


def linear(
    x: Tensor, values: Tensor, bias: Tensor | None, index: Sequence[Tensor], sizes: Sequence[int]
) -> Tensor:
    """Return y [..., O]."""
    return F.linear(x, scatter_blocks(values, index, sizes).flatten(1), bias)


def linear_input_grad(
    grad: Tensor, values: Tensor, index: Sequence[Tensor], sizes: Sequence[int]
) -> Tensor:
    """Return dx [..., C] for dy [..., O]."""
    return grad @ scatter_blocks(values, index, sizes).flatten(1)


def linear_weight_grad(
    x: Tensor, grad: Tensor, index: Sequence[Tensor], sizes: Sequence[int]
) -> Tensor:
    """Return dvalues [Z, BC, BO]."""
    return gather_blocks(linear_dense_weight_grad(x, grad), index, sizes)


def linear_dense_weight_grad(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient [O, C, 1, 1] that a dense weight would have."""
    return (grad.flatten(0, -2).T @ x.flatten(0, -2))[:, :, None, None]


def _conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    which: int,
) -> Tensor:
    wanted = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], 1, wanted
    )[which]
