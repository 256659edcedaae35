"""Topology updates against naive loops and dense twins, and what must hold after each of them."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from topologies import (
    BLOCKS,
    OPTIMIZERS,
    backward,
    best_groups,
    block_ids,
    naive_norms,
    network,
    sparse_layers,
    train_step,
    weakest_slots,
)
from torch import nn

from sparse_engine import SparseLinear, densify
from sparse_engine.errors import InputError
from sparse_engine.layers.optimizer_state import state_tensors
from sparse_engine.sparsity.topology import Topology
from sparse_kernels import BlockLayout


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("rule", ["set", "rigl"])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_update_keeps_strong_blocks_and_grows_zeros(rule, block, rate):
    model = network(block)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    topology = Topology(model, optimizer, rule)
    topology.arm()
    train_step(model, optimizer)
    before = copy.deepcopy(model)
    topology.update(rate)

    for name, layer in sparse_layers(model).items():
        old = before.get_submodule(name)
        strength = old.values.abs().sum((1, 2)).tolist()
        changed = torch.zeros(old.layout.slots, dtype=torch.bool)
        changed[weakest_slots(old.layout, strength, rate)] = True
        assert changed.sum() == int(rate * old.layout.active + 0.5)
        assert layer.layout.groups_by_kind == old.layout.groups_by_kind
        assert layer.block_mask().sum() == layer.layout.active == old.layout.active
        assert torch.equal(layer.values[~changed], old.values[~changed])
        assert torch.equal(layer.layout.block_ids[~changed], old.layout.block_ids[~changed])
        assert not layer.values[changed].any()
        fresh = BlockLayout(layer.layout.shape, layer.block, layer.layout.block_ids)
        for mine, theirs in zip(layer.layout.tensors(), fresh.tensors(), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("block", BLOCKS)
def test_rigl_grows_the_inactive_blocks_with_the_largest_dense_gradient(block):
    model = network(block)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    twin = densify(copy.deepcopy(model))
    backward(twin)
    topology = Topology(model, optimizer, "rigl")
    topology.arm()
    train_step(model, optimizer)
    before = copy.deepcopy(model)
    strength = [layer.values.abs().sum((1, 2)).tolist() for layer in sparse_layers(model).values()]
    topology.update(0.4)

    for (name, layer), strong in zip(sparse_layers(model).items(), strength):
        norms = naive_norms(twin.get_submodule(name).weight.grad, layer.block)
        old = before.get_submodule(name).layout
        ids, slots = old.block_ids.tolist(), weakest_slots(old, strong, 0.4)
        dropped = [ids[slot] for slot in slots]
        kept = set(ids) - set(dropped)
        grown = set(layer.layout.block_ids.tolist()) - kept
        best = best_groups(old, norms, kept, dropped)
        assert len(grown) == len(slots) == int(0.4 * len(ids) + 0.5)
        assert sorted(norms[b] for b in grown) == pytest.approx(sorted(norms[b] for b in best))


def test_static_changes_nothing():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    topology = Topology(model, optimizer, "static")
    topology.arm()
    train_step(model, optimizer)
    before = copy.deepcopy(model.state_dict())
    topology.update(0.5)
    assert not topology.needs_gradient
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("rule", ["set", "rigl"])
@pytest.mark.parametrize("density", [0.6, 0.9])
def test_a_large_escape_keeps_the_count_of_dense_layers(rule, density):
    model = network(sparsity=1 - density)
    counts = {n: layer.layout.active for n, layer in sparse_layers(model).items()}
    topology = Topology(model, None, rule)
    topology.arm()
    backward(model)
    topology.update(0.8)
    for name, layer in sparse_layers(model).items():
        assert layer.block_mask().sum() == counts[name]
        zero_blocks = (layer.values.abs().sum((1, 2)) == 0).sum()
        assert zero_blocks == int(0.8 * counts[name] + 0.5)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rule", ["set", "rigl"])
def test_momenta_are_zero_where_grown_and_untouched_elsewhere(name, rule):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    topology = Topology(model, optimizer, rule)
    for seed in range(3):
        topology.arm()
        train_step(model, optimizer, seed)
    layers = sparse_layers(model).values()
    before = [[s.clone() for s in state_tensors(optimizer, m.values)] for m in layers]
    steps = [optimizer.state[m.values].get("step", torch.tensor(0)).clone() for m in layers]
    topology.update(0.3)

    expected = {"sgd": 1, "nesterov": 1, "adam": 3, "adamw": 2}[name]
    for layer, old_states, step in zip(layers, before, steps):
        grown = layer.values.abs().sum((1, 2)) == 0
        states = state_tensors(optimizer, layer.values)
        assert grown.any()
        assert len(states) == expected
        for old, new in zip(old_states, states):
            assert not new[grown].any()
            assert old[grown].any()
            assert torch.equal(new[~grown], old[~grown])
        assert torch.equal(optimizer.state[layer.values].get("step", torch.tensor(0)), step)


@pytest.mark.parametrize("rule", ["set", "rigl"])
def test_addresses_survive_an_update(rule):
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    topology = Topology(model, optimizer, rule)

    def addresses() -> list[int]:
        tensors = []
        for layer in sparse_layers(model).values():
            tensors += [layer.values, *layer.layout.tensors()]
            tensors += state_tensors(optimizer, layer.values)
        return [tensor.data_ptr() for tensor in tensors]

    topology.arm()
    train_step(model, optimizer)
    before = addresses()
    topology.update(0.5)
    assert addresses() == before


@pytest.mark.parametrize("rule", ["set", "rigl"])
def test_the_model_computes_with_its_new_blocks(rule):
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    topology = Topology(model, optimizer, rule)
    for seed in range(4):
        topology.arm()
        train_step(model, optimizer, seed)
        topology.update(0.3)
    train_step(model, optimizer)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x), densify(copy.deepcopy(model))(x))


def test_unused_slots_stay_unused_and_zero():
    layout = BlockLayout((8, 8), (4, 4), torch.tensor([0, 4, 2, 4]), active=2)
    model = nn.Sequential(SparseLinear(8, 8, layout=layout))
    topology = Topology(model, None, "set")
    for _ in range(5):
        topology.update(1.0)
        ids = model[0].layout.block_ids
        assert ids[[1, 3]].tolist() == [4, 4]
        assert (ids < 4).sum() == 2
        assert not model[0].values.any()


def test_exploration_rate_by_hand():
    layout = BlockLayout((4, 4), (2, 2), torch.tensor([0]))
    model = nn.Sequential(SparseLinear(4, 4, layout=layout))
    topology = Topology(model, None, "set")
    assert topology.exploration_rate() == 0.25
    seen = {0}
    for _ in range(6):
        topology.update(1.0)
        seen |= set(model[0].layout.block_ids.tolist())
        assert topology.exploration_rate() == len(seen) / 4
    assert len(seen) > 1


def test_exploration_rate_weighs_layers_by_their_weights():
    model = nn.Sequential(
        SparseLinear(4, 4, layout=BlockLayout((4, 4), (2, 2), torch.arange(2))),
        SparseLinear(4, 12, layout=BlockLayout((12, 4), (4, 4), torch.arange(1))),
    )
    assert Topology(model, None, "set").exploration_rate() == (8 + 16) / (16 + 48)
    assert Topology(nn.Linear(2, 2), None, "set").exploration_rate() == 1.0


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(BLOCKS),
    st.sampled_from(["set", "rigl"]),
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.floats(0.1, 0.6),
    st.sampled_from(["each", "row", "all"]),
)
def test_any_series_of_updates_keeps_the_invariants(block, rule, rates, name, sparsity, taps):
    model = network(block, sparsity, taps=taps)
    optimizer = OPTIMIZERS[name](model.parameters())
    topology = Topology(model, optimizer, rule)
    counts = {n: layer.layout.active for n, layer in sparse_layers(model).items()}
    for seed, rate in enumerate(rates):
        topology.arm()
        train_step(model, optimizer, seed)
        topology.update(rate)
        for layer_name, layer in sparse_layers(model).items():
            layer.layout.validate(layer.layout.block_ids)
            assert layer.block_mask().sum() == counts[layer_name]
            outside = ~layer.layout.mask().flatten()
            norms = torch.tensor(naive_norms(layer.dense_weight().detach(), layer.block))
            assert not norms[outside].any()
    assert topology.updates == len(rates)


def test_updates_depend_on_the_seed_and_on_nothing_else():
    def updated(seed: int) -> list[list[torch.Tensor]]:
        model = network()
        topology = Topology(model, None, "set", seed)
        found = []
        for _ in range(3):
            torch.rand(1)
            topology.update(0.5)
            found.append(block_ids(model))
        return found

    first, same, other = updated(1), updated(1), updated(2)
    assert all(torch.equal(a, b) for x, y in zip(first, same) for a, b in zip(x, y))
    assert not any(torch.equal(a, b) for x, y in zip(first, other) for a, b in zip(x, y))


def test_the_draws_of_one_update_are_not_those_of_the_next():
    model = network()
    later_model = copy.deepcopy(model)
    topology, later = Topology(model, None, "set"), Topology(later_model, None, "set")
    later.updates = 1
    topology.update(0.5)
    later.update(0.5)
    assert not any(torch.equal(a, b) for a, b in zip(block_ids(model), block_ids(later_model)))


def test_state_dict_continues_the_updates():
    model = network()
    topology = Topology(model, None, "set", seed=3)
    topology.update(0.5)
    resumed_model = copy.deepcopy(model)
    resumed = Topology(resumed_model, None, "set", seed=3)
    resumed.load_state_dict(copy.deepcopy(topology.state_dict()))
    for _ in range(2):
        topology.update(0.5)
        resumed.update(0.5)
    assert resumed.exploration_rate() == topology.exploration_rate()
    assert all(torch.equal(a, b) for a, b in zip(block_ids(model), block_ids(resumed_model)))


@pytest.mark.parametrize("armed", [False, True])
def test_gradient_growth_without_gradient_is_an_error(armed):
    topology = Topology(network(), None, "rigl")
    if armed:
        topology.arm()
    with pytest.raises(RuntimeError, match="no gradient reached a sparse layer"):
        topology.update(0.3)


def test_unknown_rule_names_the_nearest():
    with pytest.raises(InputError, match="unknown topology rule 'rigel'; did you mean 'rigl'"):
        Topology(network(), None, "rigel")
