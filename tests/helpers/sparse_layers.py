"""One sparse layer of each kind, with what it takes."""

import pytest
import torch

from sparse_engine import SparseConv2d, SparseLinear

LAYERS = {
    "convolution": lambda **k: SparseConv2d(40, 24, 3, padding=1, density=0.3, block=(16, 16), **k),
    "linear": lambda **k: SparseLinear(40, 24, density=0.4, block=(16, 16), **k),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def input_of(layer):
    shape = (2, 40, 5, 5) if isinstance(layer, SparseConv2d) else (2, 40)
    return torch.randn(shape, dtype=layer.values.dtype)


def call_dense(layer, x):
    """Return what PyTorch's own function makes of an input and a layer's `weight`."""
    if x.ndim == 4:
        return torch.nn.functional.conv2d(x, layer.weight, padding=1)
    return torch.nn.functional.linear(x, layer.weight)


def assert_whole_groups(layer):
    """Check that every strip, or pair of channel blocks, has all of its taps or none."""
    taps = layer.layout.mask().flatten(3 if layer.taps == "row" else 2)
    assert taps.all(-1).equal(taps.any(-1))
    assert taps.sum() == layer.layout.active == layer.layout.validate(layer.layout.block_ids)
