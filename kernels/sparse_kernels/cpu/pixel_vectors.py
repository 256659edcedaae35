"""The native kernel whose vectors run over pixels: for blocks that are narrow along what a pass
writes, single weights included.

Legend as in layout.py; N images of H x W pixels, P x Q of the output. The C++ (source/
pixel_*.cpp) copies a strip of images at a time to vectors of one pixel of each of several
images, or bands of images, multiplies them by one weight at a time, and writes the results back as
channels_last. Sums are in fp32; activations of 16 bits are converted as they are copied, values
before. Results are equal bit for bit whatever the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_kernels.cpu.library import TYPES, library
from sparse_kernels.index_tensors import adjacent_ids, count_slots
from sparse_kernels.memory_order import empty_images, in_order

Ints = Sequence[int]
Index = Sequence[Tensor]
# What the C++ says of a call.
_UNSOUND, _NO_MEMORY = 1, 2


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    y: Tensor,
    index: Index,
    sizes: Ints,
    geometry: Sequence[Ints],
) -> Tensor:
    """Return the output [N, O, P, Q] of x [N, C, H, W], in the order of y.

    Args:
        x: fp32, fp16 or bf16; values and bias are of the same dtype.
        values: [Z, BC, BO]; what lies outside the weight may be anything.
        bias: [O] or None.
        y: empty, of the result's shape and order; it is written, unless a new tensor is returned.
        index: BlockLayout.tensors().
        sizes: O, C, R, S, BO, BC.
        geometry: stride, padding, dilation.
    """
    layer = _layer(x, y, index, sizes, geometry)
    return _gather(layer, False, x, values, bias, y, index)


def conv2d_input_grad(
    grad: Tensor, values: Tensor, dx: Tensor, index: Index, sizes: Ints, geometry: Sequence[Ints]
) -> Tensor:
    """Return the input gradient [N, C, H, W] of dy [N, O, P, Q]; dx is as y of conv2d."""
    layer = _layer(dx, grad, index, sizes, geometry)
    return _gather(layer, True, grad, values, None, dx, index)


def conv2d_weight_grad(
    x: Tensor, grad: Tensor, index: Index, sizes: Ints, geometry: Sequence[Ints]
) -> Tensor:
    """Return dvalues [Z, BC, BO]; zero in unused slots and outside the weight."""
    layer = _layer(x, grad, index, sizes, geometry)
    x, grad = _native(x), _native(grad)
    bo, bc = sizes[4:]
    dvalues = x.new_zeros((count_slots(index), bc, bo), dtype=torch.float32)
    if x.numel() and grad.numel():
        images = [_pointer(x), _memory(x), _pointer(grad), _memory(grad)]
        code = _library().pixels_weight_grad(
            layer, *images, _pointer(dvalues), _pointer(adjacent_ids(index))
        )
        _check(code)
    return dvalues.to(x.dtype)


def _gather(
    layer: ctypes.Array,
    backward: bool,
    source: Tensor,
    values: Tensor,
    bias: Tensor | None,
    result: Tensor,
    index: Index,
) -> Tensor:
    if not result.numel():
        return result
    source, values = _native(source), values.float().contiguous()
    written = result
    if not _is_native(result):
        written = empty_images(source, result.shape, "channels_last")
    if bias is not None:
        bias = bias.float().contiguous()
    code = _library().pixels_gather(
        layer,
        int(backward),
        _pointer(source),
        _memory(source),
        _pointer(values),
        _pointer(bias),
        _pointer(written),
        _memory(written),
        _pointer(adjacent_ids(index)),
    )
    _check(code)
    return result if written is result else result.copy_(written)


def _native(x: Tensor) -> Tensor:
    """Return x with its channels side by side in memory; itself if it is that."""
    return x if _is_native(x) else in_order(x, "channels_last")


def _is_native(x: Tensor) -> bool:
    # A dimension of size 1 has any stride.
    return x.stride(1) == 1 or x.shape[1] == 1


def _layer(
    x: Tensor, y: Tensor, index: Index, sizes: Ints, geometry: Sequence[Ints]
) -> ctypes.Array:
    """Return `Layer` of pixel_plan.h."""
    numbers = (
        *(x.shape[0], *x.shape[2:], *y.shape[2:], *sizes),
        *(n for pair in geometry for n in pair),
        *(count_slots(index), torch.get_num_threads()),
    )
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _memory(x: Tensor) -> ctypes.Array:
    """Return `memory` of pixel_gather.cpp."""
    steps = (x.stride(d) * x.element_size() for d in (0, 2, 3))
    return (ctypes.c_int64 * 4)(*steps, TYPES.index(x.dtype))


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _library() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise RuntimeError("the native kernels cannot be built here")
    return found


def _check(code: int) -> None:
    if code == _UNSOUND:
        raise ValueError("block ids name a block that is not there: build the lists anew")
    if code == _NO_MEMORY:
        raise MemoryError("no memory for the native kernels' copies of images")
