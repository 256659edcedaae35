"""A state dict brings its own blocks, whatever those of the model are."""

import copy

import pytest
import torch
from torch import nn

from sparse_engine import dense_state_dict, sparsify
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.state_dict import load_state, without_unused_slots
from sparse_kernels import BlockLayout


def small_model(sparsity=None):
    model = nn.Sequential(nn.Conv2d(5, 20, 3), nn.BatchNorm2d(20), nn.Flatten(), nn.Linear(80, 33))
    if sparsity:
        sparsify(model, sparsity, "uniform", (4, 4), init="random")
    return model


@pytest.mark.parametrize(("first", "second"), [(None, 0.3), (0.3, None), (0.3, 0.7), (0.7, 0.7)])
def test_a_state_brings_its_own_block_counts(first, second):
    source, target = small_model(first), small_model(second)
    state = source.state_dict()
    load_state(target, state)
    assert target.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())
    x = torch.randn(2, 5, 4, 4)
    assert torch.equal(source.eval()(x), target.eval()(x))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layers_stay_in_the_models_order_in_memory(order):
    target = small_model(0.7).to(memory_format=order)
    load_state(target, small_model(0.3).state_dict())
    assert target[0].is_channels_last == (order == torch.channels_last)
    load_state(target, small_model().state_dict())
    assert target[0].weight.is_contiguous(memory_format=order)


def test_unused_slots_survive_a_round_trip():
    model = small_model()
    sparsify(model, 0.5, "uniform", (4, 4))
    layout = model[0].layout
    ids = layout.block_ids.clone()
    ids[-2:] = layout.total
    model[0].layout = BlockLayout(layout.shape, layout.block, ids, layout.active - 2)
    model[0].values.data[-2:] = 0
    target = small_model()
    load_state(target, model.state_dict())
    assert (target[0].layout.active, target[0].layout.slots) == (layout.active - 2, layout.slots)
    found, expected = dense_state_dict(target), dense_state_dict(model)
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def test_a_state_that_does_not_fit_is_an_error():
    sparse = small_model(0.5)
    state = copy.deepcopy(sparse.state_dict())
    state["0.block_ids"][0] = state["0.block_ids"][1]
    with pytest.raises(RuntimeError, match="distinct"):
        load_state(small_model(), state)
    with pytest.raises(RuntimeError, match=r"size mismatch|block ids should be from 0"):
        load_state(nn.Sequential(nn.Linear(3, 3)), sparse.state_dict())


@pytest.mark.parametrize("taps", ["each", "row", "all"])
def test_a_state_without_unused_slots_is_the_same_network(taps):
    model, twin = small_model(), small_model()
    sparsify(model, 0.6, block=(4, 4), init="random", headroom=0.5, taps=taps)
    state = model.state_dict()
    compact = without_unused_slots(model, state)
    load_state(twin, compact)
    for name, layer in twin.named_modules():
        if isinstance(layer, SparseLayer):
            old = model.get_submodule(name).layout
            assert layer.layout.slots == layer.layout.active == old.active <= old.slots
            assert layer.layout.mask().equal(old.mask())
    assert sum(v.numel() for v in compact.values()) < sum(v.numel() for v in state.values())
    for name, value in dense_state_dict(model).items():
        assert value.equal(dense_state_dict(twin)[name])
