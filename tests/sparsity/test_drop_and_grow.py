"""Blocks that span all taps of a kernel, in whole models: chosen, updated, saved and loaded."""

import pytest
import torch
import torch.nn.functional as F
from sparse_layers import assert_whole_pairs
from torch import nn

from sparse_engine import SparseConv2d, SparseLinear, dense_state_dict, densify, report, sparsify
from sparse_engine.layers.base import SparseLayer
from sparse_engine.sparsity.distribution import Sparsity
from sparse_engine.sparsity.drop_and_grow import assert_invariants
from sparse_engine.sparsity.topology import Topology


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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


def test_budgets_count_whole_groups():
    shapes = {"a": (40, 30, 3, 3), "b": (30, 20, 1, 1), "c": (10, 30)}
    plans = Sparsity(0.7, "erk", (8, 8), "all").plans(shapes)
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
    layer = SparseConv2d(10, 13, (3, 2), density=0.4, block=(4, 4), taps="all")
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


def test_a_sparse_linear_layer_has_one_tap():
    model = network()
    assert isinstance(model[5], SparseLinear)
    assert model[5].layout.group == 1
