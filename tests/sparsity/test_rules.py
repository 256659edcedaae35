"""SNFS and GraNet: what sets them apart from SET and RigL."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from topologies import best_groups
from torch import nn

from sparse_engine import DynamicSparsity, densify, sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.candidates import dense_layers
from sparse_engine.layers.optimizer_state import state_tensors
from sparse_engine.sparsity.distribution import Sparsity
from sparse_engine.sparsity.topology import Topology, contributions
from sparse_engine.sparsity.update_schedule import UpdateSchedule


def dense_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 16, 3), nn.Flatten(),
        nn.Linear(16 * 16, 10),
    ).double()  # fmt: skip


def network(sparsity=0.7, **options) -> nn.Module:
    model = dense_network()
    sparsify(model, sparsity, block=(4, 4), init="random", **options)
    return model


def layers(model) -> dict[str, SparseLayer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}


def active(model) -> dict[str, int]:
    return {n: m.layout.active for n, m in layers(model).items()}


def backward(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, 6, 6, generator=generator, dtype=torch.float64)
    F.cross_entropy(model(x), torch.arange(6)).backward()


def train_step(model, optimizer, seed=0):
    optimizer.zero_grad()
    backward(model, seed)
    optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-3)


def assert_sound(model, optimizer):
    """Check layouts, and that unused slots hold nothing, after steps with weight decay."""
    for layer in layers(model).values():
        layout = layer.layout
        assert layout.validate(layout.block_ids) == layout.active <= layout.slots
        unused = layout.block_ids == layout.total
        assert not layer.values[unused].any()
        for state in state_tensors(optimizer, layer.values):
            assert not state[unused].any()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(model(x), densify(copy.deepcopy(model))(x))


@pytest.mark.parametrize("taps", ["each", "row", "all"])
def test_granet_prunes_from_the_start_plan_to_the_final_plan(taps):
    model = network(0.8, start_sparsity=0.3, taps=taps)
    shapes = {n: tuple(m.weight.shape) for n, m in dense_layers(dense_network())}
    final = {p.name: p.active for p in Sparsity(0.8, "erk", (4, 4), taps).plans(shapes)}
    start = {p.name: p.active for p in Sparsity(0.3, "erk", (4, 4), taps).plans(shapes)}
    assert active(model) == {n: start[n] for n in layers(model)}
    optimizer = sgd(model)
    schedule = UpdateSchedule(2, 0.5, 20)
    topology, counts = Topology(model, optimizer, "granet"), [active(model)]
    for step in range(1, 24):
        topology.arm_before(schedule, step)
        train_step(model, optimizer, step)
        if rate := schedule.rate(step):
            topology.update(rate, schedule.pruned_share(step))
            counts.append(active(model))
            assert_sound(model, optimizer)
    for name in layers(model):
        series = [count[name] for count in counts]
        assert series == sorted(series, reverse=True)
        assert series[-1] == final[name]
    assert len({tuple(count.values()) for count in counts}) > 3


def test_granet_grows_by_gradient_while_it_prunes():
    model = network(0.8, start_sparsity=0.5)
    topology = Topology(model, None, "granet")
    topology.arm()
    backward(model)
    scores = {n: m.collected.clone() for n, m in layers(model).items()}
    before = copy.deepcopy(model)
    topology.update(0.5, 0.5)
    for name, layer in layers(model).items():
        old = before.get_submodule(name).layout
        grown = (layer.values.abs().sum((1, 2)) == 0) & (layer.layout.block_ids < old.total)
        target = layer.layout.active
        assert grown.sum() == int(0.5 * target + 0.5)
        kept = set(layer.layout.block_ids[~grown].tolist())
        found = layer.layout.block_ids[grown].tolist()
        assert set(found) == best_groups(old, scores[name].tolist(), kept, found)


def test_pruning_is_cubic_and_ends_before_the_updates_do():
    schedule = UpdateSchedule(10, 0.5, 101)
    shares = [schedule.pruned_share(step) for step in range(0, 101, 10)]
    assert shares[:7] == pytest.approx([1 - (1 - k / 6) ** 3 for k in range(7)])
    assert shares[6:] == [1.0] * 5
    assert schedule.pruned_share(19) == schedule.pruned_share(10)
    assert UpdateSchedule(10, 0.5, 11).pruned_share(10) == 1.0
    assert UpdateSchedule(10, 0.5, None).pruned_share(10) == 1.0
    by_hand = (10 * sum(shares[:10]) + 100 * 1.0) / 200
    assert schedule.mean_pruned_share(200) == pytest.approx(by_hand)


def test_snfs_layers_grow_in_proportion_to_the_gradients_of_their_weights():
    model = network(headroom=3.0)
    optimizer = sgd(model)
    before = copy.deepcopy(model)
    topology = Topology(model, optimizer, "snfs")
    topology.arm()
    train_step(model, optimizer)
    scores = {n: m.collected.clone() for n, m in layers(model).items()}
    found = contributions(layers(model), scores)
    topology.update(0.5)
    grown, rates, budget = 0, {}, 0
    for name, layer in layers(model).items():
        old = before.get_submodule(name).layout
        size = math.prod(old.shape) / old.total
        ids = [b for b in old.block_ids.tolist() if b < old.total]
        assert found[name] == pytest.approx(scores[name][ids].mean().item() / size)
        growth = layer.layout.active - (old.active - int(0.5 * old.active + 0.5))
        if layer.layout.active < layer.layout.slots:
            rates[name] = (growth - 1) * size / found[name], (growth + 1) * size / found[name]
        grown += layer.layout.active * size
        budget += old.active * size
    assert len(rates) >= 2
    assert max(low for low, _ in rates.values()) <= min(high for _, high in rates.values())
    assert budget - 16 < grown <= budget
    assert active(model) != active(before)
    assert_sound(model, optimizer)


def test_snfs_without_headroom_moves_nothing():
    model = network()
    before = active(model)
    topology = Topology(model, None, "snfs")
    topology.arm()
    backward(model)
    topology.update(0.5)
    assert active(model) == before


def test_snfs_scores_are_a_momentum_of_gradient_norms():
    model = network()
    topology = Topology(model, None, "snfs")
    expected = {}
    for seed in range(3):
        single = copy.deepcopy(model)
        for layer in layers(single).values():
            layer.collect()
        backward(single, seed)
        for name, layer in layers(single).items():
            expected[name] = layer.collected + 0.9 * expected.get(name, 0)
        topology.arm()
        backward(model, seed)
    for name, layer in layers(model).items():
        torch.testing.assert_close(layer.collected, expected[name])


def test_snfs_collects_in_the_steps_before_an_update_only():
    model = network(headroom=0.25)
    optimizer = sgd(model)
    dynamic = DynamicSparsity(model, optimizer, "snfs", interval=60, total_steps=400)
    armed = []
    for step in range(1, 121):
        if next(iter(layers(model).values()))._probe is not None:
            armed.append(step)
        train_step(model, optimizer, step)
        assert dynamic.step() == (step % 60 == 0)
    assert armed == [*range(17, 61), *range(77, 121)]
    assert_sound(model, optimizer)


@pytest.mark.parametrize(
    ("rule", "options"), [("snfs", {"headroom": 0.5}), ("granet", {"start_sparsity": 0.2})]
)
@pytest.mark.parametrize("stopped", [5, 8, 12])
def test_a_resumed_loop_equals_one_that_went_on(rule, options, stopped):
    def start():
        model = network(**options)
        optimizer = sgd(model)
        return model, optimizer, DynamicSparsity(model, optimizer, rule, 5, total_steps=25)

    def go_on(model, optimizer, dynamic, first, last):
        for step in range(first, last):
            train_step(model, optimizer, step)
            dynamic.step()

    model, optimizer, dynamic = start()
    go_on(model, optimizer, dynamic, 0, stopped)
    saved = copy.deepcopy([part.state_dict() for part in (model, optimizer, dynamic)])
    again = start()
    for part, state in zip(again, saved):
        part.load_state_dict(state)
    assert active(again[0]) == active(model)
    go_on(model, optimizer, dynamic, stopped, 20)
    go_on(*again, stopped, 20)
    for mine, theirs in zip(model.state_dict().values(), again[0].state_dict().values()):
        assert mine.equal(theirs)


def test_what_granet_needs():
    model = network()
    with pytest.raises(InputError, match="'granet' prunes over the run: say total_steps"):
        DynamicSparsity(model, sgd(model), "granet", 5)
    with pytest.raises(InputError, match="from a denser start: give sparsify a start_sparsity"):
        DynamicSparsity(model, sgd(model), "granet", 5, total_steps=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_sparsity": 0.7}, "start_sparsity must be at least 0 and below sparsity 0.7"),
        ({"start_sparsity": -0.1}, "start_sparsity must be at least 0"),
        ({"headroom": -1}, "headroom must be at least 0 and finite, found -1"),
        ({"headroom": float("inf")}, "headroom must be at least 0 and finite"),
    ],
)
def test_starts_that_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        network(**options)


def test_headroom_is_unused_slots():
    plain, spare = network(), network(headroom=0.25)
    for name, layer in layers(spare).items():
        assert layer.layout.active == plain.get_submodule(name).layout.active
        assert layer.layout.slots > layer.layout.active or layer.density == 1
        assert layer.layout.slots <= layer.layout.total
    assert_sound(spare, sgd(spare))
