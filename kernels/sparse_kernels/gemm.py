"""The `gemm` path on a CPU: one library matrix product for each active block.

Sources and results are matrices [M, width], one for each block of channels; a step (result,
source, shift, slot) adds `source[m + shift] @ weight[slot]` to row m of a result. That is all of
forward and input gradient, of the linear layer (here; no shifts) and of convolution
(gemm_convolution.py). The last block of channels may be narrower.

Sums are taken in fp32 at least. Every call reads the lists of blocks anew: beside the products
that costs little, and it leaves nothing that an update of the topology could make wrong.
"""

import functools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sparse_kernels.layout import PassIndex
from sparse_kernels.threads import shared

Ints = Sequence[int]
Index = Sequence[Tensor]
Matrices = Mapping[Hashable, Tensor]
Step = tuple[Hashable, Hashable, int, int]
# Rows of a product: enough to outweigh its call, few enough for the caches.
ROWS = 8192


def linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, sizes: Ints) -> Tensor:
    """Return y [..., O] of x [..., C]."""
    steps = [(o, c, 0, slot) for o, c, _, _, slot in blocks(PassIndex.forward(index))]
    weights = values.to(precise(x.dtype)).unbind(0)
    return _linear(x, weights, bias, steps, (sizes[0], sizes[4]), sizes[5])


def linear_input_grad(grad: Tensor, values: Tensor, index: Index, sizes: Ints) -> Tensor:
    """Return dx [..., C] of dy [..., O]."""
    steps = [(c, o, 0, slot) for c, o, _, _, slot in blocks(PassIndex.input_grad(index))]
    weights = values.to(precise(grad.dtype)).mT.unbind(0)
    return _linear(grad, weights, None, steps, (sizes[1], sizes[5]), sizes[4])


def linear_weight_grad(x: Tensor, grad: Tensor, index: Index, sizes: Ints) -> Tensor:
    """Return dvalues [Z, BC, BO]; zero in unused slots and outside the weight."""
    dtype = x.dtype
    steps = [(o, c, 0, slot) for o, c, _, _, slot in blocks(PassIndex.forward(index))]

    def products(x: Tensor, grad: Tensor) -> Tensor:
        dvalues = zero_values(x, index, sizes)
        for source, dy in zip(x.split(ROWS), grad.split(ROWS)):
            add_outer_products(dvalues, _columns(dy, sizes[4]), _columns(source, sizes[5]), steps)
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


def add_products(
    results: Matrices, sources: Matrices, steps: Sequence[Step], weights: Sequence[Tensor]
) -> None:
    """Add source[m + shift] @ weights[slot] to row m of a result, for every step."""
    written, read = _Parts(results), _Parts(sources)
    for result, source, shift, slot in steps:
        (length, width), (extent, depth) = written.sizes[result], read.sizes[source]
        first, last = _overlap(length, extent, shift)
        weight = _cropped(weights[slot], depth, width)
        block = written.part(result, first, last)
        block.addmm_(read.part(source, first + shift, last + shift), weight)


def add_outer_products(
    dvalues: Tensor, grads: Matrices, sources: Matrices, steps: Sequence[Step]
) -> None:
    """Add the sum over m of source[m + shift].T @ grad[m] to dvalues[slot], for every step."""
    written, read = _Parts(grads), _Parts(sources, transposed=True)
    blocks = dvalues.unbind(0)
    for grad, source, shift, slot in steps:
        (length, width), (extent, depth) = written.sizes[grad], read.sizes[source]
        first, last = _overlap(length, extent, shift)
        block = _cropped(blocks[slot], depth, width)
        parts = read.part(source, first + shift, last + shift), written.part(grad, first, last)
        block.addmm_(*parts)


class _Parts:
    """Ranges of rows of some matrices, each cut out once: it takes as long as a small product."""

    def __init__(self, matrices: Matrices, transposed: bool = False) -> None:
        self.matrices, self.transposed = matrices, transposed
        self.sizes = {key: tuple(matrix.shape) for key, matrix in matrices.items()}
        self.cut: dict[Hashable, Tensor] = {}

    def part(self, key: Hashable, first: int, last: int) -> Tensor:
        """Return rows of a matrix, or their transpose."""
        found = self.cut.get((key, first, last))
        if found is None:
            found = self.matrices[key][first:last]
            found = self.cut[key, first, last] = found.T if self.transposed else found
        return found


def _overlap(written: int, read: int, shift: int) -> tuple[int, int]:
    """Return the range of m for which row m is written and row m + shift can be read."""
    first, last = -shift if shift < 0 else 0, min(written, read - shift)
    return first, last if last > first else first


def _cropped(block: Tensor, rows: int, columns: int) -> Tensor:
    """Return the part of a block that is inside the weight."""
    return block if block.shape == (rows, columns) else block[:rows, :columns]


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
            add_products(_columns(result, written[1]), _columns(source, read), steps, weights)

    rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
    shared(products, rows, y.view(-1, written[0]), rows=len(rows))
    return y.to(x.dtype)


def _columns(matrix: Tensor, width: int) -> Matrices:
    return dict(enumerate(matrix.split(width, dim=1)))
