"""Layers of every kind, and what dense PyTorch makes of them.

The rule for every result: its relative error, measured against float64, is at most twice that of
dense PyTorch in the same dtype. Weights are built and taken apart here by loops over the slots.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sparse_kernels import BlockLayout, block_conv2d, block_linear

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Case:
    """An input shape, a weight shape, a block, the share of active blocks, unused slots."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    block: tuple[int, int] = (16, 16)
    density: float = 0.4
    unused: int = 0
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] | str = 0
    dilation: int | tuple[int, int] = 1
    bias: bool = True

    @property
    def geometry(self):
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


CONVOLUTIONS = {
    "plain": Case((2, 32, 7, 6), (32, 32, 3, 3)),
    "padded": Case((2, 32, 7, 6), (48, 32, 3, 3), padding=1),
    "padding by dimension": Case((2, 32, 7, 6), (16, 32, 3, 3), padding=(2, 0)),
    "more padding than kernel": Case((1, 16, 3, 3), (16, 16, 2, 2), padding=3),
    "stride": Case((3, 32, 9, 8), (32, 32, 3, 3), stride=2, padding=1),
    "stride by dimension": Case((2, 16, 9, 8), (32, 16, 3, 3), stride=(1, 3), padding=1),
    "stride past the kernel": Case((2, 32, 8, 9), (32, 32, 1, 1), stride=3),
    "dilation": Case((2, 32, 9, 9), (32, 32, 3, 3), dilation=2, padding=2),
    "dilation by dimension": Case((2, 32, 9, 9), (32, 32, 3, 2), dilation=(1, 3), stride=2),
    "pointwise": Case((2, 48, 5, 5), (32, 48, 1, 1)),
    "wide kernel": Case((2, 16, 4, 9), (32, 16, 1, 5), padding=(0, 2)),
    "ragged": Case((2, 21, 6, 5), (37, 21, 3, 3), padding=1),
    "ragged and unlike": Case((2, 11, 6, 5), (5, 11, 3, 2), block=(2, 4), padding=1),
    "three channels": Case((2, 3, 8, 8), (16, 3, 3, 3), block=(32, 32), padding=1),
    "same": Case((2, 32, 6, 5), (32, 32, 3, 5), padding="same"),
    "same, even kernel": Case((2, 32, 6, 5), (32, 32, 2, 4), padding="same"),
    "same, even and odd, dilated": Case((2, 16, 7, 8), (16, 16, 4, 3), padding="same", dilation=3),
    "valid": Case((2, 32, 6, 5), (32, 32, 3, 3), padding="valid"),
    "unbatched": Case((32, 6, 5), (32, 32, 3, 3), padding=1),
    "unbatched, same": Case((32, 6, 5), (32, 32, 2, 2), padding="same"),
    "kernel as large as the image": Case((2, 32, 3, 4), (32, 32, 3, 4)),
    "no bias": Case((2, 32, 7, 6), (32, 32, 3, 3), bias=False),
    "one block": Case((2, 64, 5, 5), (64, 64, 3, 3), density=0.001),
    "full": Case((2, 32, 5, 5), (32, 32, 3, 3), density=1),
    "unstructured": Case((2, 5, 6, 6), (7, 5, 3, 3), block=(1, 1)),
    "unused slots": Case((2, 21, 6, 5), (37, 21, 3, 3), unused=3, padding=1),
    "one image, one pixel": Case((1, 32, 1, 1), (32, 32, 1, 1)),
}


LINEARS = {
    "plain": Case((6, 48), (32, 48)),
    "ragged": Case((5, 33), (50, 33)),
    "ten classes": Case((5, 40), (10, 40), block=(32, 32)),
    "one vector": Case((32,), (48, 32)),
    "sequence": Case((2, 3, 4, 32), (48, 32), bias=False),
    "one block": Case((4, 64), (64, 64), density=0.01),
    "full": Case((4, 32), (64, 32), density=1),
    "unstructured": Case((4, 7), (9, 7), block=(1, 1)),
    "unused slots": Case((4, 33), (50, 33), unused=2),
}


def make(case, dtype=torch.float32, seed=0):
    """Return x, values, layout and bias of a case; unused slots hold NaN."""
    torch.manual_seed(seed)
    whole = BlockLayout(case.weight, case.block, torch.arange(1))
    active = max(1, round(case.density * whole.total))
    ids = torch.cat([torch.randperm(whole.total)[:active], torch.full((case.unused,), whole.total)])
    layout = BlockLayout(case.weight, case.block, ids[torch.randperm(len(ids))], active)
    values = torch.randn(layout.slots, layout.block[1], layout.block[0], dtype=torch.float64)
    values[layout.block_ids == layout.total] = torch.nan
    x = torch.randn(case.x, dtype=torch.float64)
    bias = torch.randn(case.weight[0], dtype=torch.float64) if case.bias else None
    x, values = x.to(dtype).requires_grad_(), values.to(dtype).requires_grad_()
    return x, values, layout, None if bias is None else bias.to(dtype).requires_grad_()


def slices(layout):
    """Yield slot, place in the dense weight [O, C, R, S] and real sizes of every used slot."""
    bo, bc = layout.block
    for slot, block_id in enumerate(layout.block_ids.tolist()):
        if block_id < layout.total:
            pair, tap = divmod(block_id, layout.grid[2] * layout.grid[3])
            (o, c), (r, s) = divmod(pair, layout.grid[1]), divmod(tap, layout.grid[3])
            rows = slice(o * bo, min((o + 1) * bo, layout.shape[0]))
            columns = slice(c * bc, min((c + 1) * bc, layout.shape[1]))
            sizes = (rows.stop - rows.start, columns.stop - columns.start)
            yield slot, (rows, columns, r, s), sizes


def dense_weight(values, layout):
    """Return the weight [O, C, R, S] that the values mean."""
    weight = values.new_zeros(layout.shape)
    for slot, place, (rows, columns) in slices(layout):
        weight[place] = values.detach()[slot, :columns, :rows].T
    return weight


def stored_part(dense, layout):
    """Return the values [Z, BC, BO] of a weight or its gradient."""
    values = dense.new_zeros(layout.slots, layout.block[1], layout.block[0])
    for slot, place, (rows, columns) in slices(layout):
        values[slot, :columns, :rows] = dense[place].T
    return values


def operator(case):
    return block_conv2d if len(case.weight) == 4 else block_linear


def sparse_results(case, x, values, layout, bias, grad):
    """Return output, dx, dvalues and dbias of the operator under test."""
    arguments = case.geometry if len(case.weight) == 4 else {}
    y = operator(case)(x, values, layout, bias, **arguments)
    wanted = [t for t in (x, values, bias) if t is not None]
    return [y, *torch.autograd.grad(y, wanted, grad.to(y.dtype).expand_as(y))]


def dense_results(case, x, values, layout, bias, grad, dtype):
    """Return the same of dense PyTorch in some dtype."""
    x = x.detach().to(dtype).requires_grad_()
    weight = dense_weight(values, layout).to(dtype).requires_grad_()
    bias = None if bias is None else bias.detach().to(dtype).requires_grad_()
    if len(case.weight) == 4:
        y = F.conv2d(x, weight, bias, **case.geometry)
    else:
        y = F.linear(x, weight.flatten(1), bias)
    wanted = [t for t in (x, weight, bias) if t is not None]
    dx, dweight, *rest = torch.autograd.grad(y, wanted, grad.to(dtype))
    return [y, dx, stored_part(dweight, layout), *rest]


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def assert_as_exact_as_dense(case, dtype, x, values, layout, bias):
    """Compare output and all gradients; float64 with itself, to rounding."""
    grad = torch.randn_like(sparse_results(case, x, values, layout, bias, torch.ones(()))[0])
    found = sparse_results(case, x, values, layout, bias, grad)
    exact = dense_results(case, x, values, layout, bias, grad, torch.float64)
    dense = dense_results(case, x, values, layout, bias, grad, dtype)
    for name, ours, truth, theirs in zip(("y", "dx", "dvalues", "dbias"), found, exact, dense):
        assert ours.dtype == dtype
        assert ours.shape == truth.shape
        limit = 1e-14 if dtype == torch.float64 else 2 * error(theirs, truth)
        if dtype == torch.float32:  # of few numbers the dense layer's rounding may be luck
            limit = max(limit, torch.finfo(dtype).eps)
        assert error(ours, truth) <= limit, name
