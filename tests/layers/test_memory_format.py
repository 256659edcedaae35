"""Convolutions answer in channels_last after `to(memory_format=...)`, as dense ones do."""

import copy

import pytest
import torch
from torch import nn

from sparse_engine import SparseConv2d, densify, sparsify
from sparse_kernels.memory_order import order_of

LAST = torch.channels_last


def network(channels):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )


def sparse(model):
    sparsify(model, 0.5, "uniform", (4, 4))
    return model


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_order", [LAST, torch.contiguous_format])
@pytest.mark.parametrize("when", ["before", "after", "never", "and back"])
def test_outputs_and_gradients_lie_as_those_of_dense_layers(channels, image_order, when):
    model = network(channels)
    if when == "before":
        model = model.to(memory_format=LAST)
    model = sparse(model)
    if when != "never":
        model = model.to(memory_format=LAST)
    if when == "and back":
        model = model.to(memory_format=torch.contiguous_format)
    dense = densify(copy.deepcopy(model))
    x = torch.randn(2, channels, 6, 5).to(memory_format=image_order).requires_grad_()
    for ours, theirs in zip(model, dense):
        y, expected = ours(x), theirs(x)
        torch.testing.assert_close(y, expected)
        assert y.stride() == expected.stride()
        (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert gradient.shape == x.shape
        x = y.detach().requires_grad_()
    assert order_of(x) == (
        "contiguous" if when in ("never", "and back") and image_order != LAST else "channels_last"
    )


def test_copies_and_other_types_remember_the_order():
    model = sparse(network(1)).to(memory_format=LAST)
    for other in (copy.deepcopy(model), model.double(), model.to("meta")):
        assert all(m.is_channels_last for m in other if isinstance(m, SparseConv2d))
    assert all(m.weight.is_contiguous(memory_format=LAST) for m in densify(model)[::3])


def test_images_without_a_batch_are_left_as_they_are():
    layer = SparseConv2d(3, 8, 3, block=(4, 4)).to(memory_format=LAST)
    assert layer(torch.randn(3, 6, 6)).is_contiguous()
