"""Layers that get other blocks keep weight and optimizer state of the blocks they keep."""

import pytest
import torch
from torch import nn

from sparse_engine import sparsify
from sparse_engine.layers.base import SparseLayer, weight_parameter
from sparse_engine.layers.surgery import change_layouts, used_layouts
from sparse_engine.sparsity.topology import Topology
from sparse_engine.training.network import Network
from sparse_kernels import BlockLayout
from sparse_kernels.operators.reference import scatter_blocks


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(5, 20, 3), nn.BatchNorm2d(20), nn.Flatten(), nn.Linear(80, 33))


def train(model, optimizer, steps=2):
    for step in range(steps):
        x = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def small_network(sparsity=None, optimizer=torch.optim.SGD, **settings):
    model = small_model()
    if sparsity:
        sparsify(model, sparsity, "uniform", (4, 4), init="random")
    made = optimizer(model.parameters(), lr=0.1, **settings)
    train(model, made)
    return Network(model, made, Topology(model, made, "set"), torch.tensor(0.1))


def dense_state_of(network, name, key):
    layer = network.model.get_submodule(name)
    state = network.optimizer.state[weight_parameter(layer)][key]
    if isinstance(layer, SparseLayer):
        state = scatter_blocks(state, layer.layout.tensors(), layer.layout.sizes())
    return state.reshape(layer.weight.shape)


def half_of(layouts):
    """Return layouts of every other block."""
    return {n: BlockLayout(o.shape, o.block, o.block_ids[::2]) for n, o in layouts.items()}


def layouts_of(model):
    shapes = {"0": (20, 5, 3, 3), "3": (33, 80)}
    assert set(used_layouts(model)) == set(shapes)
    return {n: BlockLayout(s, (4, 4), torch.arange(9)) for n, s in shapes.items()}


@pytest.mark.parametrize("sparsity", [None, 0.3])
@pytest.mark.parametrize(
    ("optimizer", "settings", "keys"),
    [
        (torch.optim.SGD, {"momentum": 0.9}, ["momentum_buffer"]),
        (torch.optim.Adam, {}, ["exp_avg", "exp_avg_sq"]),
    ],
)
def test_weights_and_state_of_blocks_that_stay_are_carried_over(
    sparsity, optimizer, settings, keys
):
    network = small_network(sparsity, optimizer, **settings)
    present = used_layouts(network.model)
    chosen = half_of(present if sparsity else layouts_of(network.model))
    weights = {n: network.model.get_submodule(n).weight.detach().clone() for n in chosen}
    states = {(n, key): dense_state_of(network, n, key) for n in chosen for key in keys}
    bias = network.model[0].bias
    network.replace_layers(change_layouts(network.model, chosen))
    for name, layout in chosen.items():
        layer = network.model.get_submodule(name)
        ones = torch.ones(layout.slots, *layout.block[::-1])
        mask = scatter_blocks(ones, layout.tensors(), layout.sizes()).reshape(layer.weight.shape)
        assert layer.layout.active == layout.active
        assert torch.equal(layer.weight, weights[name] * mask)
        for key in keys:
            assert torch.equal(dense_state_of(network, name, key), states[name, key] * mask)
    assert network.model[0].bias is bias
    owned = {id(p) for group in network.optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in network.model.parameters()}
    assert set(network.optimizer.state) <= set(network.model.parameters())
    before = weight_parameter(network.model[0]).detach().clone()
    train(network.model, network.optimizer)
    assert not torch.equal(before, weight_parameter(network.model[0]))


def test_a_layer_may_become_full_again():
    network = small_network(0.5, momentum=0.9)
    weight = network.model[0].weight.detach().clone()
    momentum = dense_state_of(network, "0", "momentum_buffer")
    network.replace_layers(change_layouts(network.model, {"0": None, "3": None}))
    assert type(network.model[0]) is nn.Conv2d
    assert torch.equal(network.model[0].weight, weight)
    assert torch.equal(dense_state_of(network, "0", "momentum_buffer"), momentum)
    assert network.topology.layers == {}


def test_exploration_goes_on_after_a_layer_is_pruned():
    network = small_network(0.5)
    network.topology.update(0.5)
    ever = {n: mask.clone() for n, mask in network.topology.ever_active.items()}
    network.replace_layers(change_layouts(network.model, half_of(used_layouts(network.model))))
    assert network.topology.updates == 1
    assert all(torch.equal(network.topology.ever_active[n], mask) for n, mask in ever.items())
    full = small_network()
    full.replace_layers(change_layouts(full.model, half_of(layouts_of(full.model))))
    assert full.topology.exploration_rate() == 1
