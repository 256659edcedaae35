"""The definition of every operator in plain PyTorch: scatter the blocks, then the dense operator.

It is the `masked` path on any device, and what each kernel is compared with.
Shapes: x [N, C, H, W] or [..., C], values [Z, BC, BO], sizes = (O, C, R, S, BO, BC).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_kernels.layout import block_grid


def scatter_blocks(values: Tensor, block_ids: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the dense weight [O, C, R, S] of values [Z, BC, BO]; differentiable."""
    out_channels, in_channels, taps_h, taps_w, bo, bc = sizes
    grid = block_grid(sizes[:4], (bo, bc))
    total = grid[0] * grid[1] * taps_h * taps_w
    # One row more than there are blocks takes what unused slots write.
    flat = values.new_zeros(total + 1, bc * bo)
    flat = flat.index_copy(0, block_ids.long(), values.reshape(-1, bc * bo))
    blocks = flat[:total].view(*grid, bc, bo).permute(0, 5, 1, 4, 2, 3)
    return blocks.reshape(grid[0] * bo, grid[1] * bc, taps_h, taps_w)[:out_channels, :in_channels]


def dense_blocks(dense: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return all blocks [OB * CB * R * S, BC, BO] of a weight [O, C, R, S], edges zero-padded."""
    out_channels, in_channels, taps_h, taps_w, bo, bc = sizes
    ob, cb, _, _ = block_grid(sizes[:4], (bo, bc))
    pad = (0, 0, 0, 0, 0, cb * bc - in_channels, 0, ob * bo - out_channels)
    padded = F.pad(dense, pad) if any(pad) else dense
    blocks = padded.reshape(ob, bo, cb, bc, taps_h, taps_w).permute(0, 2, 4, 5, 3, 1)
    return blocks.reshape(-1, bc, bo)


def gather_blocks(dense: Tensor, block_ids: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return values [Z, BC, BO] of a weight [O, C, R, S]; zero in unused slots."""
    blocks = dense_blocks(dense, sizes)
    used = block_ids < len(blocks)
    values = blocks.index_select(0, block_ids.long().clamp(max=len(blocks) - 1))
    return torch.where(used[:, None, None], values, 0)


def block_norms(dense: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the L1 norm of every block of a weight [O, C, R, S], as [OB * CB * R * S]."""
    return dense_blocks(dense.abs(), sizes).sum((1, 2))


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    block_ids: Tensor,
    sizes: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return y [N, O, P, Q]."""
    weight = scatter_blocks(values, block_ids, sizes)
    return F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation))


def conv2d_input_grad(
    grad: Tensor,
    values: Tensor,
    block_ids: Tensor,
    sizes: Sequence[int],
    image: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return dx [N, C, H, W] for dy [N, O, P, Q], where image = (H, W)."""
    weight = scatter_blocks(values, block_ids, sizes)
    shape = (grad.shape[0], sizes[1], *image)
    x = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format(grad))
    return _conv_backward(grad, x, weight, stride, padding, dilation, 0)


def conv2d_weight_grad(
    x: Tensor,
    grad: Tensor,
    block_ids: Tensor,
    sizes: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return dvalues [Z, BC, BO]."""
    dense = conv2d_dense_weight_grad(x, grad, sizes, stride, padding, dilation)
    return gather_blocks(dense, block_ids, sizes)


def conv2d_dense_weight_grad(
    x: Tensor,
    grad: Tensor,
    sizes: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the gradient [O, C, R, S] that a dense weight would have."""
    weight = x.new_empty(list(sizes[:4]))
    return _conv_backward(grad, x, weight, stride, padding, dilation, 1)


def linear(
    x: Tensor, values: Tensor, bias: Tensor | None, block_ids: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Return y [..., O]."""
    return F.linear(x, scatter_blocks(values, block_ids, sizes).flatten(1), bias)


def linear_input_grad(
    grad: Tensor, values: Tensor, block_ids: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Return dx [..., C] for dy [..., O]."""
    return grad @ scatter_blocks(values, block_ids, sizes).flatten(1)


def linear_weight_grad(x: Tensor, grad: Tensor, block_ids: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return dvalues [Z, BC, BO]."""
    return gather_blocks(linear_dense_weight_grad(x, grad), block_ids, sizes)


def linear_dense_weight_grad(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient [O, C, 1, 1] that a dense weight would have."""
    return (grad.flatten(0, -2).T @ x.flatten(0, -2))[:, :, None, None]


def memory_format(x: Tensor) -> torch.memory_format:
    """Return channels_last for a tensor [N, C, H, W] that is stored so and not also contiguous."""
    channels_last = torch.channels_last
    if x.is_contiguous(memory_format=channels_last) and not x.is_contiguous():
        return channels_last
    return torch.contiguous_format


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
