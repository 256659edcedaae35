"""The definition of every operator in plain PyTorch: scatter the blocks, then the dense operator.

It is the `masked` path on any device, and what each kernel is compared with.
Shapes: x [N, C, H, W] or [..., C], values [Z, BC, BO]; index and sizes as operators take them,
BlockLayout.tensors() and BlockLayout.sizes(); geometry is stride, padding and dilation. Of images
in HWNC results are channels_last.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_kernels.index_tensors import SlotIndex, slot_index
from sparse_kernels.layout import block_grid
from sparse_kernels.memory_order import in_order, library_order, memory_format, order_of

Ints = Sequence[int]
Index = Sequence[Tensor]


def scatter_blocks(
    values: Tensor,
    index: Index,
    sizes: Ints,
    channels_last: bool = False,
    in_place: bool = True,
) -> Tensor:
    """Return the dense weight [O, C, R, S] of values [Z, BC, BO]; differentiable.

    With channels_last it is stored as [O, R, S, C], which spares convolutions of such images a
    copy (half of the time of 512 channels at 2x2 pixels and batch 32, on a CPU). Without in_place
    nothing is written to and few operators are called, which costs a copy of the weight.
    """
    if not in_place:
        return _scatter_once(values, index[0], sizes)
    return _scatter(values, index[0], slot_index(index, sizes), sizes, channels_last)


def scatter_diagonal(values: Tensor, index: Index, sizes: Ints, members: int) -> Tensor:
    """Return the weights of layers that one weight holds as squares on its diagonal.

    Args:
        values: [Z, BC, BO].
        index, sizes: of the one weight [O, C, R, S]; blocks lie in the squares alone.
        members: M, the number of squares, O / M x C / M each.

    Returns:
        [O, C / M, R, S], the squares one below the other; differentiable.
    """
    out_channels, in_channels, taps_h, taps_w, *block = sizes
    slots = slot_index(index, sizes)
    in_blocks = block_grid(sizes[:4], block)[1] // members
    slots = slots._replace(in_block=slots.in_block % in_blocks)
    pair = slots.out_block * in_blocks + slots.in_block
    block_ids = (pair * taps_h + slots.tap_h) * taps_w + slots.tap_w
    square = (out_channels, in_channels // members, taps_h, taps_w, *block)
    return _scatter(values, block_ids, slots, square)


def _scatter(
    values: Tensor, block_ids: Tensor, slots: SlotIndex, sizes: Ints, channels_last: bool = False
) -> Tensor:
    out_channels, in_channels, taps_h, taps_w, bo, bc = sizes
    out_blocks, in_blocks, _, _ = block_grid(sizes[:4], (bo, bc))
    # What unused slots write goes to one element, or to the output block past the end.
    if bo == bc == 1:
        flat = values.new_zeros(out_channels * in_channels * taps_h * taps_w + 1)
        flat = flat.index_copy(0, block_ids.long(), values.flatten())
        return flat[:-1].view(sizes[:4])
    height, width = (out_blocks + 1) * bo, in_blocks * bc
    if channels_last:
        dense = values.new_zeros(height, taps_h, taps_w, width).permute(0, 3, 1, 2)
    else:
        dense = values.new_zeros(height, width, taps_h, taps_w)
    blocks = dense.unflatten(0, (out_blocks + 1, bo)).unflatten(2, (in_blocks, bc))
    # Indexed dimensions side by side: vmap knows no others.
    blocks.permute(0, 2, 4, 5, 1, 3)[tuple(slots)] = values.transpose(1, 2)
    return dense[:out_channels, :in_channels]


def _scatter_once(values: Tensor, block_ids: Tensor, sizes: Ints) -> Tensor:
    """Return the same by operators that ONNX and core ATen have, for graphs."""
    out_channels, in_channels, _, _, *block = sizes
    grid = block_grid(sizes[:4], block)
    # What unused slots write goes to the block past the end. ONNX takes no ids of 32 bits.
    blocks = values.new_zeros(math.prod(grid) + 1, *values.shape[1:])
    blocks = blocks.index_put((block_ids.long(),), values)[:-1].unflatten(0, grid)
    dense = blocks.permute(0, 5, 1, 4, 2, 3).flatten(2, 3).flatten(0, 1)
    return dense[:out_channels, :in_channels]


def gather_blocks(dense: Tensor, index: Index, sizes: Ints) -> Tensor:
    """Return values [Z, BC, BO] of a weight [O, C, R, S]; zero in unused slots."""
    bo, bc = sizes[4:]
    out_blocks, in_blocks, taps_h, taps_w = block_grid(sizes[:4], (bo, bc))
    block_ids = index[0]
    used = (block_ids < out_blocks * in_blocks * taps_h * taps_w)[:, None, None]
    if bo == bc == 1:
        flat = dense.reshape(-1)
        values = flat.index_select(0, block_ids.clamp(max=len(flat) - 1))
        return torch.where(used, values[:, None, None], 0)
    out_block, in_block, tap_h, tap_w = slot_index(index, sizes)
    out_block = out_block.clamp(max=out_blocks - 1)
    values = _by_block(dense, sizes)[out_block, :, in_block, :, tap_h, tap_w]
    return torch.where(used, values.transpose(1, 2), 0).contiguous()


def block_norms(dense: Tensor, sizes: Ints) -> Tensor:
    """Return the L1 norm of every block of a weight [O, C, R, S], as [OB * CB * R * S]."""
    return _by_block(dense, sizes).abs().sum((1, 3)).flatten()


def block_sums(dense: Tensor, sizes: Ints) -> Tensor:
    """Return the sum over every block of a weight [O, C, R, S], as [OB * CB * R * S]."""
    return _by_block(dense, sizes).sum((1, 3)).flatten()


def _by_block(dense: Tensor, sizes: Ints) -> Tensor:
    """Return a weight [O, C, R, S], zero past the channels, as [OB, BO, CB, BC, R, S]."""
    out_channels, in_channels, _, _, bo, bc = sizes
    pad = (0, 0, 0, 0, 0, -in_channels % bc, 0, -out_channels % bo)
    whole = F.pad(dense, pad) if any(pad) else dense
    return whole.unflatten(0, (-1, bo)).unflatten(2, (-1, bc))


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: Index,
    sizes: Ints,
    *geometry: Ints,
    in_place: bool = True,
) -> Tensor:
    """Return y [N, O, P, Q]."""
    x = library_order(x)
    weight = scatter_blocks(values, index, sizes, memory_format(x) == torch.channels_last, in_place)
    return F.conv2d(x, weight, bias, *map(tuple, geometry))


def conv2d_input_grad(
    grad: Tensor,
    values: Tensor,
    index: Index,
    sizes: Ints,
    image: Ints,
    *geometry: Ints,
    in_place: bool = True,
) -> Tensor:
    """Return dx [N, C, H, W] for dy [N, O, P, Q], where image = (H, W)."""
    grad = library_order(grad)
    channels_last = memory_format(grad) == torch.channels_last
    weight = scatter_blocks(values, index, sizes, channels_last, in_place)
    shape = (grad.shape[0], sizes[1], *image)
    x = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format(grad))
    return _conv_backward(grad, x, weight, geometry, wanted=0)


def conv2d_weight_grad(
    x: Tensor, grad: Tensor, index: Index, sizes: Ints, *geometry: Ints
) -> Tensor:
    """Return dvalues [Z, BC, BO]."""
    dense = conv2d_dense_weight_grad(x, grad, sizes, *geometry)
    return gather_blocks(dense, index, sizes)


def conv2d_dense_weight_grad(x: Tensor, grad: Tensor, sizes: Ints, *geometry: Ints) -> Tensor:
    """Return the gradient [O, C, R, S] that a dense weight would have."""
    x = library_order(x)
    grad = in_order(grad, order_of(x))
    kind = {"dtype": x.dtype, "device": x.device, "memory_format": memory_format(x)}
    weight = torch.empty(list(sizes[:4]), **kind)
    return _conv_backward(grad, x, weight, geometry, wanted=1)


def linear(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: Index,
    sizes: Ints,
    in_place: bool = True,
) -> Tensor:
    """Return y [..., O]."""
    return F.linear(x, scatter_blocks(values, index, sizes, in_place=in_place).flatten(1), bias)


def linear_input_grad(
    grad: Tensor, values: Tensor, index: Index, sizes: Ints, in_place: bool = True
) -> Tensor:
    """Return dx [..., C] for dy [..., O]."""
    return grad @ scatter_blocks(values, index, sizes, in_place=in_place).flatten(1)


def linear_weight_grad(x: Tensor, grad: Tensor, index: Index, sizes: Ints) -> Tensor:
    """Return dvalues [Z, BC, BO]."""
    return gather_blocks(linear_dense_weight_grad(x, grad), index, sizes)


def linear_dense_weight_grad(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient [O, C, 1, 1] that a dense weight would have."""
    return (grad.flatten(0, -2).T @ x.flatten(0, -2))[:, :, None, None]


def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Sequence[Ints], wanted: int
) -> Tensor:
    """Return the gradient of x (wanted: 0) or of the weight (1)."""
    return torch.ops.aten.convolution_backward(
        *(grad, x, weight, None, *geometry, False, [0, 0], 1),
        [wanted == 0, wanted == 1, False],
    )[wanted]
