"""Topology updates against naive loops and dense twins, and what must hold after each of them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparse_engine import SparseConv2d, SparseLinear, densify, sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.surgery import state_tensors
from sparse_engine.sparsity.drop_and_grow import (
    assert_invariants,
    select_drop_and_grow,
    swap_blocks,
)
from sparse_engine.sparsity.topology import Topology
from sparse_kernels import BlockLayout

BLOCKS = [(4, 4), (5, 3), (1, 1)]
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, 0.1, 0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
    "adamw": torch.optim.AdamW,
}


def network(block=(4, 4), sparsity: float = 0.6, seed: int = 0, taps: str = "each") -> nn.Module:
    """Return a small sparse network with convolutions, a linear layer and ragged blocks."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 13, (3, 2), stride=2),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(52, 10),
    ).double()
    sparsify(model, sparsity, "uniform", block, init="random", taps=taps)
    return model


def backward(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    F.cross_entropy(model(x), torch.arange(6)).backward()


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    optimizer.zero_grad()
    backward(model, seed)
    optimizer.step()


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}


def block_ids(model: nn.Module) -> list[torch.Tensor]:
    return [layer.layout.block_ids.clone() for layer in sparse_layers(model).values()]


def naive_norms(dense: torch.Tensor, block: tuple[int, int]) -> list[float]:
    """Return the L1 norm of each block of a weight [O, C, R, S] or [O, C], in the order of ids."""
    dense = dense.reshape(*dense.shape[:2], *(dense.shape[2:] or (1, 1)))
    out_channels, in_channels, taps_h, taps_w = dense.shape
    bo, bc = block
    return [
        dense[o : o + bo, c : c + bc, r, s].abs().sum().item()
        for o in range(0, out_channels, bo)
        for c in range(0, in_channels, bc)
        for r in range(taps_h)
        for s in range(taps_w)
    ]


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
        count = int(rate * old.layout.active + 0.5)
        weakest = sorted(range(old.layout.slots), key=lambda z: old.values[z].abs().sum().item())
        changed = torch.zeros(old.layout.slots, dtype=torch.bool)
        changed[weakest[:count]] = True
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
    before = block_ids(model)
    strength = [layer.values.abs().sum((1, 2)).tolist() for layer in sparse_layers(model).values()]
    topology.update(0.4)

    for (name, layer), ids, strong in zip(sparse_layers(model).items(), before, strength):
        norms = naive_norms(twin.get_submodule(name).weight.grad, layer.block)
        count = int(0.4 * len(ids) + 0.5)
        kept_slots = sorted(range(len(ids)), key=lambda z: strong[z])[count:]
        kept = set(ids[kept_slots].tolist())
        grown = set(layer.layout.block_ids.tolist()) - kept
        best = sorted((norms[b] for b in range(len(norms)) if b not in kept), reverse=True)[:count]
        assert len(grown) == count
        assert sorted((norms[b] for b in grown), reverse=True) == pytest.approx(best)


@pytest.mark.parametrize("taps", ["each", "all"])
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


def test_a_dropped_block_may_be_grown_again_from_zero():
    layer = SparseLinear(4, 4, density=0.5, block=(1, 1))
    dropped = int(layer.layout.block_ids[3])
    drop_score = torch.ones(8).index_fill_(0, torch.tensor([3]), 0)
    grow_score = torch.zeros(16).index_fill_(0, torch.tensor([dropped]), 1)
    slots, grown = select_drop_and_grow(layer.layout, drop_score, grow_score, 1)
    assert (slots.tolist(), grown.tolist()) == ([3], [dropped])


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


def ragged_layer() -> SparseLinear:
    """Return a layer whose slots 0 to 2 hold the first, the last and no block."""
    layout = BlockLayout((6, 10), (4, 4), torch.tensor([0, 5, 6]), active=2)
    return SparseLinear(10, 6, layout=layout)


def test_invariants_hold_for_a_fresh_layer():
    assert_invariants(ragged_layer(), None, torch.tensor([], dtype=torch.long))


def test_invariants_see_a_lost_block():
    layer = ragged_layer()
    layer.layout.update_(torch.tensor([0, 0, 6]))
    with pytest.raises(AssertionError, match="count of active blocks"):
        assert_invariants(layer, None, torch.tensor([], dtype=torch.long))


def test_invariants_see_a_grown_block_that_is_not_zero():
    with pytest.raises(AssertionError, match="grown block does not start at zero"):
        assert_invariants(ragged_layer(), None, torch.tensor([0]))


@pytest.mark.parametrize("place", [(2, 0, 0), (1, 3, 0), (1, 0, 2)])
def test_invariants_see_a_value_outside_the_weight(place):
    layer = ragged_layer()
    with torch.no_grad():
        layer.values[place] = 1
    with pytest.raises(AssertionError, match="outside the weight"):
        assert_invariants(layer, None, torch.tensor([], dtype=torch.long))


def test_invariants_see_old_momentum():
    layer = ragged_layer()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        layer.values[0] = 0
    with pytest.raises(AssertionError, match="momentum"):
        assert_invariants(layer, optimizer, torch.tensor([0]))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(BLOCKS),
    st.sampled_from(["set", "rigl"]),
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.floats(0.1, 0.6),
    st.sampled_from(["each", "all"]),
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
