"""Native kernels with vectors over channels: layers whose blocks are 16 wide and wider.

Activations have adjacent channels (channels_last, "rows", matrices); others are copied once. The
C++ is in source/channel_*.cpp; sums are in fp32, and equal bit for bit in any number of threads.
Activations of 16 bits are converted as they are read and written, values before; bf16 ones are
multiplied in pairs, unconverted, where the processor has an instruction for it (source/products.h).
What a pass makes vectors of has blocks that are a multiple of 16 wide: BO for the forward pass, BC
for the input gradient, one of them for the weight gradient; `supports` says so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_kernels.cpu.library import TYPES, library
from sparse_kernels.index_tensors import adjacent_ids, count_slots
from sparse_kernels.memory_order import in_order

Ints = Sequence[int]
Index = Sequence[Tensor]
# Every vector width divides it.
MULTIPLE = 16
PASSES = ("forward", "input_grad", "weight_grad")


def multiplies_pairs(dtype: torch.dtype) -> bool:
    """Return whether numbers of a type are multiplied two at a time: bf16, on some processors."""
    return dtype == torch.bfloat16 and bool(_library().channel_pairs())


def supports(sizes: Ints, pass_name: str) -> bool:
    """Return whether a pass, one of PASSES, runs for blocks of these sizes (O, C, R, S, BO, BC)."""
    wide = [side % MULTIPLE == 0 for side in sizes[4:]]
    return {"forward": wide[0], "input_grad": wide[1], "weight_grad": any(wide)}[pass_name]


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
        x: fp32, fp16 or bf16, as are all tensors here.
        values: [Z, BC, BO]; what lies outside the weight may be anything.
        bias: [O], or None.
        y: empty, of the result's shape and order; it is written.
        index: BlockLayout.tensors().
        sizes: BlockLayout.sizes().
        geometry: stride, padding, dilation.

    Raises:
        NotImplementedError: `supports` says no, or the data type is another.
        ValueError: a size does not fit, or `index` names a block that is not there.
    """
    _check("forward", x, y, index, values, sizes)
    source, result = _adjacent(x), _to_write(y)
    pairs = _come_in_pairs(source, values, sizes[5])
    if pairs:
        source, values, sizes = _as_pairs(source), _rows_in_pairs(values), _halved(sizes, 1, 5)
    values = _ready(values)
    bias = None if bias is None else _ready(bias)
    if bias is not None and bias.shape != (sizes[0],):
        raise ValueError(f"bias should be [{sizes[0]}], found {list(bias.shape)}")
    call = _call(source, result, index, values, sizes, geometry)
    call.bias = None if bias is None else bias.data_ptr()
    call.pairs = int(pairs)
    _run("channel_gather", call)
    return y if result is y else y.copy_(result)


def conv2d_input_grad(
    grad: Tensor, values: Tensor, dx: Tensor, index: Index, sizes: Ints, geometry: Sequence[Ints]
) -> Tensor:
    """Return the input gradient [N, C, H, W] of dy [N, O, P, Q]; dx is as y of conv2d."""
    _check("input_grad", grad, dx, index, values, sizes)
    source, result = _adjacent(grad), _to_write(dx)
    sides = (*sizes[:4], sizes[5], sizes[4])
    pairs = _come_in_pairs(source, values, sizes[4])
    if pairs:
        values = values.contiguous().view(torch.float32)
        source, sides = _as_pairs(source), _halved(sides, 0, 5)
    values = _transposed(_ready(values))
    call = _call(source, result, index, values, sides, geometry)
    call.transposed, call.pairs = 1, int(pairs)
    _run("channel_gather", call)
    return dx if result is dx else dx.copy_(result)


def conv2d_weight_grad(
    x: Tensor, grad: Tensor, index: Index, sizes: Ints, geometry: Sequence[Ints]
) -> Tensor:
    """Return dvalues [Z, BC, BO]; zero in unused slots and outside the weight."""
    _check("weight_grad", x, grad, index, None, sizes)
    source, result = _adjacent(x), _adjacent(grad)
    bo, bc = sizes[4:]
    swapped = bo % MULTIPLE != 0
    sides = (bo, bc) if swapped else (bc, bo)
    dvalues = torch.zeros(count_slots(index), *sides)
    call = _call(source, result, index, None, sizes, geometry)
    call.gradient, call.swapped = dvalues.data_ptr(), int(swapped)
    call.pairs = int(multiplies_pairs(x.dtype) and grad.dtype == x.dtype)
    _run("channel_sums", call)
    return (dvalues.transpose(1, 2).contiguous() if swapped else dvalues).to(x.dtype)


class _Images(ctypes.Structure):
    """struct Images of channel_vectors.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "channels")),
        *((name, ctypes.c_int64) for name in ("step_image", "step_row", "step_pixel", "number")),
    ]


class _Call(ctypes.Structure):
    """struct Request of channel_vectors.h."""

    _fields_ = [
        ("sources", _Images),
        ("results", _Images),
        *((name, ctypes.c_void_p) for name in ("values", "bias", "gradient", "ids")),
        *((name, ctypes.c_int64) for name in ("slots", "taps_h", "taps_w")),
        *((name, ctypes.c_int64) for name in ("result_block", "source_block")),
        *((name, ctypes.c_int64 * 2) for name in ("stride", "padding", "dilation")),
        *((name, ctypes.c_int64) for name in ("transposed", "swapped", "pairs", "threads")),
    ]


def _check(
    pass_name: str, x: Tensor, y: Tensor, index: Index, values: Tensor | None, sizes: Ints
) -> None:
    if not supports(sizes, pass_name):
        raise NotImplementedError(f"{pass_name} has no vectors over channels in blocks {sizes[4:]}")
    if x.dtype not in TYPES:
        raise NotImplementedError(f"native kernels are for fp32, fp16 and bf16, found {x.dtype}")
    _check_shapes(x, y, index, values, sizes)


def _ready(t: Tensor) -> Tensor:
    """Return a tensor in fp32 whose elements lie one after the other."""
    return t.float().contiguous()


def _adjacent(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] whose channels are adjacent."""
    return x if x.shape[1] == 1 or x.stride(1) == 1 else in_order(x, "channels_last")


def _to_write(y: Tensor) -> Tensor:
    """Return y, or images to write in its place whose channels are adjacent."""
    if y.shape[1] == 1 or y.stride(1) == 1:
        return y
    return torch.empty_like(y, memory_format=torch.channels_last)


def _come_in_pairs(x: Tensor, values: Tensor, block: int) -> bool:
    """Return whether channels, which are summed over in blocks, can be multiplied two at a time.

    A pair is read as one number of 32 bits, whose address is a multiple of its size.
    """
    places = x.storage_offset(), *_steps(x), values.storage_offset()
    is_even = not any(n % 2 for n in (block, x.shape[1], *places))
    return is_even and multiplies_pairs(x.dtype) and values.dtype == x.dtype


def _as_pairs(x: Tensor) -> Tensor:
    """View bf16 images [N, C, H, W] as pairs of channels [N, C / 2, H, W]."""
    pixels = x.as_strided([x.shape[d] for d in (0, 2, 3, 1)], [*_steps(x), 1])
    return pixels.view(torch.float32).permute(0, 3, 1, 2)


def _steps(x: Tensor) -> list[int]:
    """Return the numbers from an image, a row, a pixel to the next one; 0 where is none."""
    return [x.stride(d) if x.shape[d] > 1 else 0 for d in (0, 2, 3)]


def _rows_in_pairs(values: Tensor) -> Tensor:
    """Return pairs [Z, BC / 2, BO] of the rows of bf16 values [Z, BC, BO]."""
    slots, bc, bo = values.shape
    result = values.new_empty((slots, bc // 2, bo), dtype=torch.float32)
    _rewrite("channel_pair_rows", values.contiguous(), result, result.numel() // bo, bo)
    return result


def _halved(sizes: Ints, *places: int) -> Ints:
    return [n // 2 if place in places else n for place, n in enumerate(sizes)]


def _transposed(values: Tensor) -> Tensor:
    """Return values [Z, BO, BC] of [Z, BC, BO]."""
    result = torch.empty_like(values.mT, memory_format=torch.contiguous_format)
    _rewrite("channel_transpose", values, result, *values.shape)
    return result


def _rewrite(name: str, values: Tensor, result: Tensor, *sizes: int) -> None:
    """Call a function of channel_values.cpp."""
    numbers = map(ctypes.c_int64, (*sizes, torch.get_num_threads()))
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (values, result))
    getattr(_library(), name)(*pointers, *numbers)


def _images(x: Tensor) -> _Images:
    n, c, h, w = x.shape
    steps = (x.stride(d) * x.element_size() for d in (0, 2, 3))
    return _Images(x.data_ptr(), n, h, w, c, *steps, TYPES.index(x.dtype))


def _call(
    sources: Tensor,
    results: Tensor,
    index: Index,
    values: Tensor | None,
    sizes: Ints,
    geometry: Sequence[Ints],
) -> _Call:
    """Describe a call; sizes has the block along the result first, then along the source."""
    call = _Call(sources=_images(sources), results=_images(results))
    call.values = None if values is None else values.data_ptr()
    call.ids, call.slots = adjacent_ids(index).data_ptr(), count_slots(index)
    call.taps_h, call.taps_w, call.result_block, call.source_block = sizes[2:]
    for name, pair in zip(("stride", "padding", "dilation"), geometry):
        setattr(call, name, (ctypes.c_int64 * 2)(*pair))
    call.threads = torch.get_num_threads()
    return call


def _check_shapes(
    sources: Tensor, results: Tensor, index: Index, values: Tensor | None, sizes: Ints
) -> None:
    """Refuse what the kernel would read outside of; it looks at the ids itself."""
    shape = (count_slots(index), *sizes[:3:-1])
    if values is not None and tuple(values.shape) != shape:
        raise ValueError(f"values should be {list(shape)}, found {list(values.shape)}")
    if sources.shape[0] != results.shape[0] or sorted(sizes[:2]) != sorted(
        (sources.shape[1], results.shape[1])
    ):
        found = f"{list(sources.shape)} and {list(results.shape)}"
        raise ValueError(f"images do not fit a weight {list(sizes[:4])}: found {found}")


def _run(name: str, call: _Call) -> None:
    if not getattr(_library(), name)(ctypes.byref(call)):
        raise ValueError("block ids name a block that is not there: build the lists anew")


def _library() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise NotImplementedError("native kernels cannot be compiled here")
    return found
