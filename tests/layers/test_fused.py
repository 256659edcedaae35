"""Statistics that a convolution leaves for the norm behind it; all else: models/test_fused.py."""

import torch

from sparse_engine.layers import fused
from sparse_kernels.triton.sums import TileSums


def test_statistics_of_a_tensor_that_changed_are_taken_again():
    x = torch.randn(2, 3, 2, 2)
    sums = TileSums(torch.ones(1, 2, 3), 8)
    fused._note(x, sums)
    assert fused._noted(x) is sums
    assert fused._noted(x) is None
    fused._note(x, sums)
    x.relu_()
    assert fused._noted(x) is None
