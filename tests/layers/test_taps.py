"""Blocks that span all taps of a kernel: modules, whole models, topology updates, save and load."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_engine import SparseConv2d, SparseLinear, dense_state_dict, densify, report, sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.sparsity.distribution import plan_layers
from sparse_engine.sparsity.drop_and_grow import assert_invariants
from sparse_engine.sparsity.topology import Topology


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def convolution(density=0.4, block=(4, 4), kernel=(3, 2)) -> SparseConv2d:
    return SparseConv2d(10, 13, kernel, density=density, block=block, taps="all").double()


def network(sparsity=0.6, **options) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3),
        nn.BatchNorm2d(20),
        nn.Conv2d(20, 9, 1),
        nn.Conv2d(9, 12, (2, 3)),
        nn.Flatten(),
        nn.LazyLinear(10),
    ).double()
    model(torch.zeros(2, 3, 8, 8, dtype=torch.float64))
    sparsify(model, sparsity, block=(4, 4), taps="all", **options)
    return model


def sparse_layers(model) -> list[SparseLayer]:
    return [m for m in model.modules() if isinstance(m, SparseLayer)]


def assert_whole_pairs(layer: SparseLayer) -> None:
    taps = layer.layout.mask().flatten(2)
    assert taps.all(2).equal(taps.any(2))
    assert taps.sum() == layer.layout.active == layer.layout.validate(layer.layout.block_ids)


@pytest.mark.parametrize("block", [(4, 4), (5, 3), (1, 1)])
def test_forward_and_backward_equal_the_masked_dense_layer(block):
    layer = convolution(block=block)
    dense = layer.to_dense()
    x = torch.randn(2, 10, 6, 6, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    y, expected = layer(x), dense(twin)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(x.grad, twin.grad)
    bo, bc = layer.block
    mask = layer.block_mask().repeat_interleave(bo, 0).repeat_interleave(bc, 1)[:13, :10]
    found = copy.deepcopy(layer)
    with torch.no_grad():
        found.values.copy_(layer.values.grad)
    torch.testing.assert_close(found.dense_weight(), dense.weight.grad * mask)
    assert_whole_pairs(layer)


def test_density_is_of_whole_pairs():
    layer = convolution(density=0.5)
    assert layer.layout.total == 4 * 3 * 6
    assert (layer.layout.active, layer.density, layer.taps) == (36, 0.5, "all")
    assert convolution(density=0.001).layout.active == 6
    assert "block=(4, 4), taps='all'" in repr(layer)


@pytest.mark.parametrize("kernel", [1, (1, 1)])
def test_one_tap_is_the_same_as_each(kernel):
    layers = [
        SparseConv2d(9, 9, kernel, density=0.5, block=(2, 2), taps=t, generator=torch.Generator())
        for t in ("each", "all")
    ]
    assert layers[0].layout.block_ids.equal(layers[1].layout.block_ids)
    assert layers[0].values.equal(layers[1].values)
    assert repr(layers[0]) == repr(layers[1])


def test_from_dense_keeps_the_strongest_pairs():
    conv = nn.Conv2d(8, 8, 3)
    layer = SparseConv2d.from_dense(conv, density=0.5, block=(4, 4), taps="all")
    norms = conv.weight.detach().abs().sum((2, 3)).view(2, 4, 2, 4).sum((1, 3)).flatten()
    assert set(layer.layout.group_ids.tolist()) == set(norms.topk(2).indices.tolist())
    assert_whole_pairs(layer)


def test_budgets_count_whole_groups():
    shapes = {"a": (40, 30, 3, 3), "b": (30, 20, 1, 1), "c": (10, 30)}
    plans = plan_layers(shapes, 0.7, "erk", (8, 8), "all")
    weights = sum(p.weights for p in plans)
    kept = sum(p.density * p.weights for p in plans)
    largest = max(p.weights * p.group / p.total for p in plans)
    assert [p.group for p in plans] == [9, 1, 1]
    assert all(p.active % p.group == 0 and p.active for p in plans)
    assert 0.3 * weights - largest < kept <= 0.3 * weights


def test_sparsify_reports_its_taps():
    model = network()
    for layer in sparse_layers(model):
        assert_whole_pairs(layer)
    rows = {row.name: row for row in report(model).rows}
    assert rows["3"].all_taps
    assert not rows["2"].all_taps
    assert "4x4 all taps" in str(report(model))


@pytest.mark.parametrize("rule", ["set", "rigl"])
def test_updates_swap_whole_groups_and_keep_the_budget(rule):
    model = network(init="random")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    topology = Topology(model, optimizer, rule)
    counts = [layer.layout.active for layer in sparse_layers(model)]
    for _ in range(4):
        before = [layer.layout.group_ids.clone() for layer in sparse_layers(model)]
        topology.arm()
        F.cross_entropy(
            model(torch.randn(4, 3, 8, 8, dtype=torch.float64)), torch.arange(4)
        ).backward()
        optimizer.step()
        strength = [m.values.abs().sum((1, 2)) for m in sparse_layers(model)]
        topology.update(0.5)
        for layer, count, old, strong in zip(sparse_layers(model), counts, before, strength):
            assert_whole_pairs(layer)
            assert layer.layout.active == count
            swapped = int(0.5 * len(old) + 0.5)
            weakest = strong.view(-1, layer.layout.group).sum(1).topk(swapped, largest=False)
            kept = torch.ones(len(old), dtype=torch.bool).index_fill(0, weakest.indices, False)
            assert layer.layout.group_ids[kept].equal(old[kept])
            assert not layer.values.unflatten(0, (len(old), -1))[~kept].any()


def test_invariants_see_a_group_that_lost_a_tap():
    layer = convolution()
    ids = layer.layout.block_ids.clone()
    ids[[0, 1]] = ids[[1, 0]]
    layer.layout.update_(ids)
    with pytest.raises(AssertionError, match="a group has lost a tap"):
        assert_invariants(layer, None, torch.tensor([], dtype=torch.long))


def test_own_and_dense_states_load():
    model, other = network(init="random"), network(init="random")
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert other(x).equal(model(x))
    third = network(init="random")
    third.load_state_dict(dense_state_dict(model))
    torch.testing.assert_close(third(x), model(x))
    for layer in [*sparse_layers(other), *sparse_layers(third)]:
        assert_whole_pairs(layer)
    torch.testing.assert_close(densify(third)(x), model(x))


def test_blocks_of_single_taps_do_not_load_where_all_are_one():
    single = SparseConv2d(10, 13, (3, 2), density=0.5, block=(4, 4)).double()
    layer = convolution(density=0.4)
    state = single.state_dict()
    count = layer.layout.slots
    state["values"], state["block_ids"] = state["values"][:count], state["block_ids"][:count]
    with pytest.raises(RuntimeError, match="whole groups of 6 taps"):
        layer.load_state_dict(state)


def test_a_sparse_linear_layer_has_one_tap():
    model = network()
    assert isinstance(model[5], SparseLinear)
    assert model[5].layout.group == 1


def test_unknown_taps():
    with pytest.raises(InputError, match="unknown taps 'al'; did you mean 'all'"):
        sparsify(nn.Sequential(nn.Linear(8, 8)), taps="al")
    with pytest.raises(ValueError, match="taps must be 'each' or 'all'"):
        SparseConv2d(3, 3, 3, taps="none")
