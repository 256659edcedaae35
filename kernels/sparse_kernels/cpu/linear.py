"""The `gemm` path on a CPU: one library matrix product for each active block.

Activations are matrices [M, width], one for each block of channels, the last of which may be
narrower; a product is added in place to the matrix that a block writes. The linear layer is here,
convolution, where a tap meets other rows than it writes, in convolution.py.

Sums are taken in fp32 at least. Every call reads the lists of blocks anew: beside the products
that costs little, and it leaves nothing that an update of the topology could make wrong.
"""

import functools
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sparse_kernels.cpu.threads import shared
from sparse_kernels.index_tensors import IndexTensors, PassIndex, count_slots

Ints = Sequence[int]
Index = Sequence[Tensor]
# Rows of a product of blocks of 32: enough to outweigh its call, few enough for the caches.
ROWS = 4096


def linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, sizes: Ints) -> Tensor:
    """Return y [..., O] of x [..., C]."""
    steps = [(o, c, slot) for o, c, _, _, slot in blocks(IndexTensors.of(index).forward)]
    weights = inside(values.to(precise(x.dtype)), index, sizes)
    return _linear(x, weights, bias, steps, sizes[0], sizes[4], sizes[5])


def linear_input_grad(grad: Tensor, values: Tensor, index: Index, sizes: Ints) -> Tensor:
    """Return dx [..., C] of dy [..., O]."""
    steps = [(c, o, slot) for c, o, _, _, slot in blocks(IndexTensors.of(index).input_grad)]
    weights = [block.T for block in inside(values.to(precise(grad.dtype)), index, sizes)]
    return _linear(grad, weights, None, steps, sizes[1], sizes[5], sizes[4])


def linear_weight_grad(x: Tensor, grad: Tensor, index: Index, sizes: Ints) -> Tensor:
    """Return dvalues [Z, BC, BO]; zero in unused slots and outside the weight."""
    dtype = x.dtype
    steps = [(o, c, slot) for o, c, _, _, slot in blocks(IndexTensors.of(index).forward)]

    def products(x: Tensor, grad: Tensor) -> Tensor:
        dvalues = zero_values(x, index, sizes)
        results = inside(dvalues, index, sizes)
        rows = rows_at_a_time(sizes[4:])
        for source, dy in zip(x.split(rows), grad.split(rows)):
            grads, sources = dy.split(sizes[4], 1), source.T.split(sizes[5])
            for o, c, slot in steps:
                results[slot].addmm_(sources[c], grads[o])
        return dvalues

    x, grad = (t.flatten(0, -2).to(precise(t.dtype)) for t in (x, grad))
    return total(shared(products, x, grad, rows=len(x))).to(dtype)


def blocks(lists: PassIndex) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (written block, summed block, tap_h, tap_w, slot) of every active block, in order."""
    start, slot, *place = (t.tolist() for t in lists)
    for written, (first, last) in enumerate(pairwise(start)):
        for entry in range(first, last):
            yield written, *(p[entry] for p in place), slot[entry]


def rows_at_a_time(block: Ints) -> int:
    """Return the rows of a product: more where a block is narrow."""
    return ROWS * 32 // min(32, *block)


def precise(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums of this one are taken in."""
    return dtype if dtype.itemsize >= 4 else torch.float32


def zero_values(x: Tensor, index: Index, sizes: Ints) -> Tensor:
    """Return zeros [Z, BC, BO] to sum a weight gradient in."""
    bo, bc = sizes[4:]
    return x.new_zeros((count_slots(index), bc, bo), dtype=precise(x.dtype))


def total(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of parts, in their order; the first one is overwritten."""
    return functools.reduce(Tensor.add_, parts)


def inside(values: Tensor, index: Index, sizes: Ints) -> list[Tensor]:
    """Return views of values [Z, BC, BO], one a slot, without what is outside the weight."""
    found = list(values.unbind(0))
    if sizes[0] % sizes[4] or sizes[1] % sizes[5]:
        for o, c, _, _, slot in blocks(IndexTensors.of(index).forward):
            rows, columns = sizes[1] - c * sizes[5], sizes[0] - o * sizes[4]
            found[slot] = found[slot][:rows, :columns]
    return found


def _linear(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    steps: Sequence[tuple[int, int, int]],
    width: int,
    written: int,
    read: int,
) -> Tensor:
    """Return [..., width] of x; written, read: the block along the result and along x."""
    y = x.new_zeros((*x.shape[:-1], width), dtype=precise(x.dtype))
    if bias is not None:
        y += bias
    at_a_time = rows_at_a_time((written, read))

    def products(x: Tensor, y: Tensor) -> None:
        for source, result in zip(x.split(at_a_time), y.split(at_a_time)):
            results, sources = result.split(written, 1), source.split(read, 1)
            for g, k, slot in steps:
                results[g].addmm_(sources[k], weights[slot])

    rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
    shared(products, rows, y.view(-1, width), rows=len(rows))
    return y.to(x.dtype)
