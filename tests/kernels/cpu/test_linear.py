"""The linear layer, and pointwise convolutions, on the gemm path: what is its own."""

import pytest
import torch
from gemm_cases import make, masked, step

from sparse_kernels import BlockLayout, block_conv2d, block_linear
from sparse_kernels.cpu import linear
from sparse_kernels.memory_order import ORDERS, in_order


@pytest.mark.usefixtures("number_of_threads")
@pytest.mark.parametrize("rows", [1, 3, 4096])
def test_a_linear_layer_in_parts(monkeypatch, rows):
    monkeypatch.setattr(linear, "ROWS", rows)
    values, layout = make((50, 33))
    x = torch.randn(7, 33, dtype=torch.float64)
    found = step(block_linear, x, values, layout)
    for ours, theirs in zip(found, masked(monkeypatch, block_linear, x, values, layout)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_result_shares_no_memory_with_an_input():
    values, layout = make((32, 32), density=1)
    x = torch.randn(4, 32, dtype=torch.float64)
    before = x.clone()
    for order in ORDERS:
        images = in_order(x[:, :, None, None].repeat(1, 1, 2, 2), order)
        pointwise = BlockLayout((32, 32, 1, 1), (16, 16), layout.block_ids)
        for result in step(block_conv2d, images, values, pointwise):
            result.detach().zero_()
        assert images.any()
    for result in step(block_linear, x, values, layout):
        result.detach().zero_()
    assert x.equal(before)
    assert values.any()
