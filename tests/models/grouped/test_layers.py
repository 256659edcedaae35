"""Layers of several members are one launch, and hold what the members' layers hold."""

from collections import Counter

import pytest
import torch
from grouped_networks import Odd, assert_equal, images, members, one_by_one
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_engine import SparseConv2d, SparseLinear, group, sparsify
from sparse_engine.layers.base import SparseLayer
from sparse_engine.models.build import build_model
from sparse_engine.sparsity.sparsify import dense_layers
from sparse_kernels.dispatch.backend import forced_backend
from sparse_kernels.operators.reference import gather_blocks


def test_spare_slots_stay_out_of_every_member():
    torch.manual_seed(0)
    models, x = (
        [build_model("mlp", classes=10, channels=3, height=8, width=8).eval() for _ in range(3)],
        images(),
    )
    for model in models:
        sparsify(model, 0.7, "uniform", block=(16, 16), init="random", headroom=0.25)
    with torch.no_grad():
        grouped = group(models)
        assert_equal(grouped(x), one_by_one(models, x))
    for name, layer in grouped.named_modules():
        if isinstance(layer, SparseLayer):
            layouts = [model.get_submodule(name).layout for model in models]
            assert layer.layout.slots > layer.layout.active == sum(a.active for a in layouts)
            assert layer.layout.validate(layer.layout.block_ids) == layer.layout.active


def test_equals_the_members_in_the_interpreter(triton_backend):
    models, x = members(Odd, (32, 16), count=2), images(count=2)
    with torch.no_grad():
        assert_equal(group(models)(x), one_by_one(models, x))


def test_what_lies_past_the_last_channel_is_not_read():
    models, x = members(Odd, (32, 16)), images()
    grouped = group(models)
    for layer in (layer for model in models for layer in model.modules()):
        if isinstance(layer, SparseLayer):
            index, sizes = layer.layout.tensors(), layer.layout.sizes()
            inside = gather_blocks(torch.ones(layer.layout.shape), index, sizes)
            layer.values.data += 100 * (1 - inside)
    with torch.no_grad():
        assert_equal(group(models)(x), grouped(x))


def test_one_launch_for_each_layer():
    class Calls(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.found = Counter()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.found[function.namespace] += 1
            return function(*args, **(kwargs or {}))

    models, x = members(Odd), images()
    layers = sum(isinstance(layer, SparseLayer) for layer in models[0].modules())
    counts = []
    for network in (models[0], group(models)):
        with torch.no_grad(), forced_backend("native"), Calls() as calls:
            network(x)
        counts.append(calls.found["sparse_kernels"])
    assert counts == [layers, layers]


def test_nothing_is_stored_between_members():
    models = members(Odd, (16, 16))
    grouped = group(models)
    for name, layer in models[0].named_modules():
        if isinstance(layer, SparseLayer):
            each = [model.get_submodule(name) for model in models]
            own = grouped.get_submodule(name)
            assert own.layout.slots == sum(other.layout.slots for other in each)
            assert own.layout.active == sum(other.layout.active for other in each)
            parts = own.values.split([other.layout.slots for other in each])
            assert all(torch.equal(a, b.values) for a, b in zip(parts, each, strict=True))


def test_members_may_differ_in_blocks_and_be_full():
    models, x = members(Odd, sparsity=0), images()
    sparsify(models[0], 0.8, "uniform", block=(16, 16), init="random", headroom=0.5)
    sparsify(models[1], 0.3, "erk", block=(16, 16), init="random")
    sparsify(models[2], 0.5, "uniform", block=(16, 16), init="random", skip=["inner"])
    assert {name for name, _ in dense_layers(models[2])} == {"inner"}
    with torch.no_grad():
        assert_equal(group(models)(x), one_by_one(models, x))


@pytest.mark.parametrize("taps", ["row", "all"])
def test_taps_that_go_together(taps):
    torch.manual_seed(0)
    models = [Odd().eval() for _ in range(2)]
    for model in models:
        sparsify(model, 0.5, block=(16, 16), taps=taps, init="random")
    grouped = group(models)
    assert grouped.get_submodule("inner").taps == taps
    with torch.no_grad():
        assert_equal(grouped(images()), one_by_one(models, images()))


def test_grouped_layers_are_ordinary_sparse_layers():
    grouped = group(members(Odd, sparsity=0.5))
    assert isinstance(grouped.get_submodule("inner"), SparseConv2d)
    assert isinstance(grouped.get_submodule("hidden"), SparseLinear)
