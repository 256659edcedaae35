"""Weights of several layers that lie on the diagonal of one."""

import pytest
import torch

from sparse_kernels import BlockLayout
from sparse_kernels.operators.reference import scatter_blocks, scatter_diagonal

MEMBERS = 3


@pytest.mark.parametrize("block", [(8, 4), (1, 1)])
def test_the_squares_on_the_diagonal_are_all_that_is_not_zero(block):
    torch.manual_seed(0)
    shape = (16 * MEMBERS, 8 * MEMBERS, 2, 3)
    grid = BlockLayout(shape, block, torch.arange(1)).grid
    outs, ins = (torch.arange(n) // (n // MEMBERS) for n in grid[:2])
    mask = (outs[:, None] == ins)[:, :, None, None] & (torch.rand(grid) < 0.5)
    used = mask.flatten().nonzero().flatten()
    ids = torch.cat([used, torch.full((2,), mask.numel())])
    layout = BlockLayout(shape, block, ids[torch.randperm(len(ids))], len(used))
    values = torch.randn(layout.slots, *reversed(block))
    index, sizes = layout.tensors(), layout.sizes()
    whole = (
        scatter_blocks(values, index, sizes).unflatten(0, (MEMBERS, -1)).unflatten(2, (MEMBERS, -1))
    )
    squares = [whole[m, :, m] for m in range(MEMBERS)]
    assert scatter_diagonal(values, index, sizes, MEMBERS).equal(torch.cat(squares))
    assert sum(s.count_nonzero() for s in squares) == whole.count_nonzero() > 0
