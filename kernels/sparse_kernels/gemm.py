"""The `gemm` path on a CPU: one library matrix product for each active block.

Sources and results are matrices [M, width], one for each block of channels; a step (result,
source, slot) adds `source @ weight[slot]` to a result. That is all of forward and input gradient,
of the linear layer (here) and, for the rows that a tap brings together, of convolution
(gemm_convolution.py). The last block of channels may be narrower.

Sums are taken in fp32 at least. Every call reads the lists of blocks anew: beside the products
that costs little, and it leaves nothing that an update of the topology could make wrong.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sparse_kernels.layout import PassIndex
from sparse_kernels.threads import shared

Ints = Sequence[int]
Index = Sequence[Tensor]
Matrices = Sequence[Tensor]
Step = tuple[int, int, int]
# Rows of a product: enough to outweigh its call, few enough for the caches.
ROWS = 4096


def linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, sizes: Ints) -> Tensor:
    """Return y [..., O] of x [..., C]."""
    steps = [(o, c, slot) for o, c, _, _, slot in blocks(PassIndex.forward(index))]
    weights = inside(values.to(precise(x.dtype)), index, sizes)
    return _linear(x, weights, bias, steps, (sizes[0], sizes[4]), sizes[5])


def linear_input_grad(grad: Tensor, values: Tensor, index: Index, sizes: Ints) -> Tensor:
    """Return dx [..., C] of dy [..., O]."""
    steps = [(c, o, slot) for c, o, _, _, slot in blocks(PassIndex.input_grad(index))]
    weights = [block.T for block in inside(values.to(precise(grad.dtype)), index, sizes)]
    return _linear(grad, weights, None, steps, (sizes[1], sizes[5]), sizes[4])


def linear_weight_grad(x: Tensor, grad: Tensor, index: Index, sizes: Ints) -> Tensor:
    """Return dvalues [Z, BC, BO]; zero in unused slots and outside the weight."""
    dtype = x.dtype
    steps = [(o, c, slot) for o, c, _, _, slot in blocks(PassIndex.forward(index))]

    def products(x: Tensor, grad: Tensor) -> Tensor:
        dvalues = zero_values(x, index, sizes)
        results = inside(dvalues, index, sizes)
        for source, dy in zip(x.split(ROWS), grad.split(ROWS)):
            add_outer_products(results, dy.split(sizes[4], 1), source.split(sizes[5], 1), steps)
        return dvalues

    x, grad = (t.flatten(0, -2).to(precise(t.dtype)) for t in (x, grad))
    return total(shared(products, x, grad, rows=len(x))).to(dtype)


def blocks(lists: PassIndex) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (written block, summed block, tap_h, tap_w, slot) of every active block, in order."""
    start, slot, *place = (t.tolist() for t in lists)
    for written, (first, last) in enumerate(pairwise(start)):
        for entry in range(first, last):
            yield written, *(p[entry] for p in place), slot[entry]


def precise(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums of this one are taken in."""
    return dtype if dtype.itemsize >= 4 else torch.float32


def zero_values(x: Tensor, index: Index, sizes: Ints) -> Tensor:
    """Return zeros [Z, BC, BO] to sum a weight gradient in."""
    return x.new_zeros((len(index[0]), sizes[5], sizes[4]), dtype=precise(x.dtype))


def total(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of parts, in their order; the first one is overwritten."""
    return functools.reduce(Tensor.add_, parts)


def inside(values: Tensor, index: Index, sizes: Ints) -> list[Tensor]:
    """Return views of values [Z, BC, BO], one a slot, without what is outside the weight."""
    found = list(values.unbind(0))
    if sizes[0] % sizes[4] or sizes[1] % sizes[5]:
        for o, c, _, _, slot in blocks(PassIndex.forward(index)):
            rows, columns = sizes[1] - c * sizes[5], sizes[0] - o * sizes[4]
            found[slot] = found[slot][:rows, :columns]
    return found


def add_products(
    results: Matrices, sources: Matrices, weights: Matrices, steps: Iterable[Step]
) -> None:
    """Add source @ weights[slot] to a result, for every step."""
    for result, source, slot in steps:
        results[result].addmm_(sources[source], weights[slot])


def add_outer_products(
    dvalues: Matrices, grads: Matrices, sources: Matrices, steps: Iterable[Step]
) -> None:
    """Add source.T @ grad to dvalues[slot], for every step."""
    transposed = [source.T for source in sources]
    for grad, source, slot in steps:
        dvalues[slot].addmm_(transposed[source], grads[grad])


def _linear(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    steps: Sequence[Step],
    written: tuple[int, int],
    read: int,
) -> Tensor:
    """Return [..., G] of x [..., K]; written = (G, its block), read = the block of K."""
    y = x.new_zeros((*x.shape[:-1], written[0]), dtype=precise(x.dtype))
    if bias is not None:
        y += bias

    def products(x: Tensor, y: Tensor) -> None:
        for source, result in zip(x.split(ROWS), y.split(ROWS)):
            add_products(result.split(written[1], 1), source.split(read, 1), weights, steps)

    rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
    shared(products, rows, y.view(-1, written[0]), rows=len(rows))
    return y.to(x.dtype)
