"""Blocks whose taps go together, in whole models: chosen, updated, saved and loaded."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_layers import assert_whole_groups
from topologies import weakest_slots
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparse_engine import SparseConv2d, SparseLinear, dense_state_dict, densify, report, sparsify
from sparse_engine.layers.base import SparseLayer
from sparse_engine.sparsity.distribution import Sparsity
from sparse_engine.sparsity.drop_and_grow import (
    assert_invariants,
    clear_padding,
    select_drop_and_grow,
    swap_blocks,
)
from sparse_engine.sparsity.topology import Topology
from sparse_kernels import BlockLayout

TOGETHER = pytest.mark.parametrize("taps", ["row", "all"])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def network(taps="all", **options) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3),
        nn.BatchNorm2d(20),
        nn.Conv2d(20, 9, 1),
        nn.Conv2d(9, 12, (2, 3)),
        nn.Flatten(),
        nn.LazyLinear(10),
    ).double()
    model(torch.zeros(2, 3, 8, 8, dtype=torch.float64))
    sparsify(model, 0.6, block=(4, 4), taps=taps, **options)
    return model


def sparse_layers(model) -> list[SparseLayer]:
    return [m for m in model.modules() if isinstance(m, SparseLayer)]


@pytest.mark.parametrize(("taps", "sizes"), [("row", [3, 1, 5, 1, 1]), ("all", [9, 3, 5, 1, 1])])
def test_budgets_count_whole_groups(taps, sizes):
    kernels = {"a": (3, 3), "b": (3, 1), "c": (1, 5), "d": (1, 1), "e": ()}
    shapes = {name: (40, 30, *kernel) for name, kernel in kernels.items()}
    plans = Sparsity(0.7, "erk", (8, 8), taps).plans(shapes)
    weights = sum(p.weights for p in plans)
    kept = sum(p.density * p.weights for p in plans)
    largest = max(p.weights * p.group / p.total for p in plans)
    assert [p.group for p in plans] == sizes
    assert all(p.active % p.group == 0 and p.active for p in plans)
    assert 0.3 * weights - largest < kept <= 0.3 * weights


@pytest.mark.parametrize(("taps", "words"), [("row", "row of taps"), ("all", "all taps")])
def test_sparsify_reports_its_taps(taps, words):
    model = network(taps)
    for layer in sparse_layers(model):
        assert_whole_groups(layer)
    rows = {row.name: row for row in report(model).rows}
    assert {row.taps for row in rows.values()} == {taps}
    with pytest.warns(DeprecationWarning, match=r"all_taps is LayerRow\.taps == 'all' now"):
        assert [rows[name].all_taps for name in "23"] == [False, taps == "all"]
    lines = str(report(model)).splitlines()[1 : 1 + len(rows)]
    assert [f"4x4 {words}" in line for line in lines] == [True, False, True, False]
    assert [f"4x4 ({taps}: no effect)" in line for line in lines].count(True) == 2


@TOGETHER
@pytest.mark.parametrize("rule", ["set", "rigl"])
def test_updates_swap_whole_groups_and_keep_the_budget(rule, taps):
    model = network(taps, init="random")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    topology = Topology(model, optimizer, rule)
    counts = [layer.layout.active for layer in sparse_layers(model)]
    for _ in range(4):
        layouts = [copy.deepcopy(layer.layout) for layer in sparse_layers(model)]
        before = [layout.group_ids for layout in layouts]
        topology.arm()
        F.cross_entropy(
            model(torch.randn(4, 3, 8, 8, dtype=torch.float64)), torch.arange(4)
        ).backward()
        optimizer.step()
        strength = [m.values.abs().sum((1, 2)) for m in sparse_layers(model)]
        topology.update(0.5)
        for layer, count, old, strong, before_layout in zip(
            sparse_layers(model), counts, before, strength, layouts
        ):
            assert_whole_groups(layer)
            assert layer.layout.active == count
            weakest = strong.view(-1, layer.layout.group).sum(1).tolist()
            kept = torch.ones(len(old), dtype=torch.bool)
            kept[weakest_slots(before_layout, weakest, 0.5)] = False
            assert layer.layout.group_ids[kept].equal(old[kept])
            assert not layer.values.unflatten(0, (len(old), -1))[~kept].any()


@TOGETHER
def test_invariants_see_a_group_that_lost_a_tap(taps):
    layer = SparseConv2d(10, 13, (3, 2), density=0.4, block=(4, 4), taps=taps)
    ids = layer.layout.block_ids.clone()
    ids[[0, 1]] = ids[[1, 0]]
    layer.layout.update_(ids)
    with pytest.raises(AssertionError, match="a group has lost a tap"):
        assert_invariants(layer, torch.tensor([], dtype=torch.long))


@TOGETHER
def test_own_and_dense_states_load(taps):
    model, other = network(taps, init="random"), network(taps, init="random")
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert other(x).equal(model(x))
    third = network(taps, init="random")
    third.load_state_dict(dense_state_dict(model))
    torch.testing.assert_close(third(x), model(x))
    for layer in [*sparse_layers(other), *sparse_layers(third)]:
        assert_whole_groups(layer)
    torch.testing.assert_close(densify(third)(x), model(x))


@TOGETHER
def test_a_sparse_linear_layer_has_one_tap(taps):
    model = network(taps)
    assert isinstance(model[5], SparseLinear)
    assert model[5].layout.group == 1


@st.composite
def swaps(draw):
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    total = rows * columns
    active = draw(st.integers(1, total))
    ids = draw(st.permutations(range(total)))[:active] + [total] * draw(st.integers(0, 4))
    ids = draw(st.permutations(ids))
    drop = draw(st.permutations(range(len(ids))))
    grow = draw(st.permutations(range(total)))
    return (rows, columns), ids, active, drop, grow, draw(st.integers(0, active))


@settings(max_examples=150, deadline=None)
@given(swaps())
def test_select_drop_and_grow_equals_a_naive_loop(case):
    shape, ids, active, drop, grow, count = case
    total = shape[0] * shape[1]
    layout = BlockLayout(shape, (1, 1), torch.tensor(ids), active)
    slots, grown = select_drop_and_grow(
        layout, torch.tensor(drop).float(), torch.tensor(grow).float(), count
    )

    used = [slot for slot, block in enumerate(ids) if block < total]
    dropped = sorted(used, key=lambda slot: drop[slot])[:count]
    kept = {ids[slot] for slot in used if slot not in dropped}
    inactive = [block for block in range(total) if block not in kept]
    best = sorted(inactive, key=lambda block: -grow[block])[:count]
    assert slots.tolist() == dropped
    assert grown.tolist() == best


@settings(max_examples=80, deadline=None)
@given(swaps(), st.data())
def test_a_count_may_change(case, data):
    shape, ids, active, drop, grow, dropped = case
    total = shape[0] * shape[1]
    layout = BlockLayout(shape, (1, 1), torch.tensor(ids), active)
    kept = active - dropped
    grown = data.draw(st.integers(0, min(total, len(ids)) - kept))
    layer = SparseLinear(shape[1], shape[0], layout=layout)
    slots, new = select_drop_and_grow(
        layout, torch.tensor(drop).float(), torch.tensor(grow).float(), dropped, grown
    )
    swap_blocks(layer, None, slots, new, kept + grown)
    assert layout.active == kept + grown
    if layout.active:
        assert layout.validate(layout.block_ids) == layout.active
    strongest = sorted((z for z, b in enumerate(ids) if b < total), key=lambda z: -drop[z])[:kept]
    old = {ids[z] for z in strongest}
    best = sorted((b for b in range(total) if b not in old), key=lambda b: -grow[b])[:grown]
    found = layout.block_ids.tolist()
    assert {b for b in found if b < total} == old | set(best)
    assert all(found[z] == ids[z] for z in strongest)
    assert not layer.values[[z for z in range(len(ids)) if z not in strongest]].any()


@pytest.mark.parametrize("taps", ["each", "row", "all"])
@pytest.mark.parametrize(("drop", "grow"), [(2, 2), (2, 1), (0, 2)])
def test_a_swap_never_asks_the_device_for_a_number(taps, drop, grow):
    with FakeTensorMode():
        ids = torch.cat([torch.arange(18), torch.full((18,), 144)])
        layout = BlockLayout((64, 64, 3, 3), (16, 16), ids, 18, taps)
        scores = torch.rand(36), torch.rand(layout.total)
        layer = SparseConv2d(64, 64, 3, layout=layout)
        active = 18 + (grow - drop) * layout.group
        swap_blocks(layer, None, *select_drop_and_grow(layout, *scores, drop, grow), active)
        assert layer.layout.active == active


def test_a_dropped_block_may_be_grown_again_from_zero():
    layer = SparseLinear(4, 4, density=0.5, block=(1, 1))
    dropped = int(layer.layout.block_ids[3])
    drop_score = torch.ones(8).index_fill_(0, torch.tensor([3]), 0)
    grow_score = torch.zeros(16).index_fill_(0, torch.tensor([dropped]), 1)
    slots, grown = select_drop_and_grow(layer.layout, drop_score, grow_score, 1)
    assert (slots.tolist(), grown.tolist()) == ([3], [dropped])


def ragged_layer() -> SparseLinear:
    """Return a layer whose slots 0 to 2 hold the first, the last and no block."""
    layout = BlockLayout((6, 10), (4, 4), torch.tensor([0, 5, 6]), active=2)
    return SparseLinear(10, 6, layout=layout)


def test_invariants_hold_for_a_fresh_layer():
    assert_invariants(ragged_layer(), torch.tensor([], dtype=torch.long))


def test_invariants_see_a_lost_block():
    layer = ragged_layer()
    layer.layout.update_(torch.tensor([0, 0, 6]))
    with pytest.raises(AssertionError, match="count of active blocks"):
        assert_invariants(layer, torch.tensor([], dtype=torch.long))


def test_invariants_see_a_grown_block_that_is_not_zero():
    with pytest.raises(AssertionError, match="grown block does not start at zero"):
        assert_invariants(ragged_layer(), torch.tensor([0]))


@pytest.mark.parametrize("place", [(2, 0, 0), (1, 3, 0), (1, 0, 2)])
def test_a_value_outside_the_weight_is_cleared(place):
    layer = ragged_layer()
    clean = layer.values.detach().clone()
    with torch.no_grad():
        layer.values[place] = torch.nan
    clear_padding(layer)
    assert layer.values.equal(clean)
