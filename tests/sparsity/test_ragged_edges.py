"""Widths that are no multiple of the block, and layers of few blocks, in whole networks."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from topologies import OPTIMIZERS
from torch import nn

from sparse_engine import (
    DynamicSparsity,
    GroupedMembers,
    GroupTopology,
    SparseConv2d,
    SparseLinear,
    report,
    sparsify,
)
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.layers.state_dict import load_state, saved_densities
from sparse_engine.layers.surgery import (
    change_layouts,
    model_densities,
    model_density,
    replace_modules,
)
from sparse_engine.sparsity.distribution import Sparsity
from sparse_engine.sparsity.pruning import strongest_layouts
from sparse_engine.sparsity.sparsify import plan_model
from sparse_engine.sparsity.topology import Topology
from sparse_kernels import BlockLayout


def network(width, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


def train(model, rule, updates, **options):
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    dynamic = DynamicSparsity(model, optimizer, rule, 1, total_steps=updates + 1, stop=None)
    for _ in range(updates):
        loss = F.cross_entropy(model(torch.randn(4, 3, 3, 3)), torch.arange(4))
        loss.backward()
        optimizer.step()
        dynamic.step()
        optimizer.zero_grad()
    return dynamic


def used(layer):
    """Return which weights of a layer are stored, bool [O, C, R, S] or [O, C]."""
    twin = copy.deepcopy(layer)
    nn.init.ones_(twin.values)
    return twin.dense_weight().detach() != 0


@pytest.mark.parametrize(
    ("channels", "block", "found"),
    [
        (160, 64, 32), (160, 128, 80), (96, 64, 48), (112, 64, 16), (48, "auto", 16),
        (40, 32, 32), (40, 64, 48), (100, 64, 64), (160, 24, 24), (10, 32, 16), (3, 64, 16),
        (128, 64, 64), (160, 256, 160),
    ],
)  # fmt: skip
def test_a_block_that_does_not_divide_becomes_one_that_does(channels, block, found):
    block = (block, block) if isinstance(block, int) else block
    assert LayerPlan.full("", (channels, channels), block).block == (found, found)
    assert SparseLinear(channels, channels, density=1.0, block=block).block == (found, found)
    given = BlockLayout((channels, channels), (64, 64), torch.arange(1))
    assert SparseLinear(channels, channels, layout=given).block == given.block


@pytest.mark.parametrize(("rule", "init"), [("rigl", "random"), ("set", "magnitude")])
@pytest.mark.parametrize(("width", "block"), [(40, 16), (72, 32)])
def test_no_edge_channel_starves(width, block, init, rule):
    shares = []
    for seed in range(10):
        model = network(width, seed)
        generator = torch.Generator().manual_seed(seed)
        sparsify(model, 0.8, "uniform", (block, block), ["0", "6"], init, generator)
        before = model_densities(model)
        train(model, rule, 30)
        assert model_densities(model) == before
        connected = used(model[2]).flatten(2).any(2).float().mean(1)
        edge = width // block * block
        shares.append(torch.stack([connected[:edge].mean(), connected[edge:].mean()]))
    whole, edge = torch.stack(shares).mean(0)
    assert 0.8 * whole < edge < 1.2 * whole


@pytest.mark.parametrize("taps", ["each", "row", "all"])
@pytest.mark.parametrize("scope", ["start", "layer", "global", "random"])
def test_densities_count_real_weights(scope, taps):
    model, what = network(50), Sparsity(0.7, "erk", (16, 16), taps)
    if scope in ("layer", "global"):
        replace_modules(model, change_layouts(model, strongest_layouts(model, what, scope)))
    else:
        init = "random" if scope == "random" else "magnitude"
        sparsify(model, 0.7, "erk", (16, 16), taps=taps, init=init)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    before = model_densities(model)
    train(model, "set", 3)
    true = {name: float(used(layer).double().mean()) for name, layer in layers.items()}
    weights = {n: math.prod(m.layout.shape) for n, m in layers.items()}
    assert before == model_densities(model) == pytest.approx(true)
    assert saved_densities(model, model.state_dict()) == before
    rows = [row for row in report(model).rows if row.block]
    assert {row.name: row.density for row in rows} == before
    left = 0.3 - model_density(model)
    assert 0 <= left < 16 * 16 * 9 / (sum(weights.values()))
    plans = {p.name: p for p in plan_model(network(50), what)}
    if scope != "global":
        assert before == {name: plans[name].density for name in layers}


def test_exploration_counts_real_weights():
    layer = SparseLinear(10, 6, layout=BlockLayout((6, 10), (4, 4), torch.tensor([0, 5])))
    assert Topology(nn.Sequential(layer), None, "set").exploration_rate() == (16 + 4) / 60


def test_a_pruned_block_counts_by_its_mean_magnitude():
    model = nn.Sequential(nn.Linear(40, 40, bias=False))
    nn.init.ones_(model[0].weight)
    with torch.no_grad():
        model[0].weight[32:, 32:] = 2  # 64 weights: their sum is the least, their mean the largest
    found = strongest_layouts(model, Sparsity(1 - 64 / 1600, "erk", (32, 32)), "global")
    assert found["0"].block_ids.tolist() == [3]


def test_blocks_that_were_saved_are_loaded():
    model, other = network(160), network(160, seed=1)
    layout = BlockLayout((160, 160, 3, 3), (64, 64), torch.tensor([0, 7, 26, 35, 80]))
    model[2] = SparseConv2d(160, 160, 3, padding=1, layout=layout)
    sparsify(other, 0.8, "uniform", (64, 64), start_sparsity=0.5)
    assert other[2].block == (32, 32)
    final = other[2].final_active / other[2].layout.total
    state = {n: v for n, v in model.state_dict().items() if n.startswith("2.")}
    middle, x = nn.Sequential(*other[:3]), torch.randn(2, 3, 5, 5)
    load_state(middle, {**middle.state_dict(), **state})
    assert middle[2].block == (64, 64)
    assert middle[2](middle[:2](x)).equal(model[2](middle[:2](x)))
    assert middle[2].final_active / 81 == pytest.approx(final, abs=1 / 81)
    # Pruning goes on in the blocks that are there; a full member is grouped in them.
    what = Sparsity(0.98, "uniform", (64, 64))
    assert strongest_layouts(middle, what, "layer")["2"].block == (64, 64)
    train(nn.Sequential(*middle, *other[3:]), "set", 2)


@pytest.mark.parametrize("rule", ["rigl", "set"])
def test_user_code_may_write_past_the_edge(rule):
    def run(noise):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10))
        sparsify(model, 0.3, "uniform", (16, 16), headroom=0.5)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        dynamic = DynamicSparsity(model, optimizer, rule, 1, total_steps=9)
        for _ in range(6):
            F.cross_entropy(model(torch.randn(8, 24)), torch.arange(8)).backward()
            for layer in model[::2] if noise else ():
                layer.values.grad[layer.layout.outside()] += noise
            optimizer.step()
            dynamic.step()
            optimizer.zero_grad()
        assert not any(layer.values[layer.layout.outside()].any() for layer in model[::2])
        return model.state_dict()

    clean, written = run(0.0), run(100.0)
    assert all(written[name].equal(value) for name, value in clean.items())


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("rule", ["set", "rigl", "snfs", "granet"])
@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8, 0.99])
def test_a_layer_of_few_blocks_never_begins_again_from_zeros(rule, rate, blocks):
    torch.manual_seed(0)
    layouts = [BlockLayout((32, 32), (16, 16), torch.arange(n)) for n in (blocks, 4)]
    model = nn.Sequential(*(SparseLinear(32, 32, layout=layout) for layout in layouts))
    model[1].final_active = 1
    topology = Topology(model, None, rule)
    for pruned in (0.5, 1.0):
        before = [layer.values.detach().clone() for layer in model]
        topology.arm()
        model(torch.randn(4, 32)).square().sum().backward()
        topology.update(rate, pruned)
        for layer, old in zip(model, before):
            assert layer.values.any()
            assert (layer.values == old).flatten(1).all(1).any()
    if rule in ("set", "rigl") and blocks == 1:
        assert model[0].layout.block_ids.tolist() == [0]


def test_a_denser_start_has_no_layer_below_its_end():
    # In whole blocks the second layer has one block at the start, two at the end.
    sizes = {"a": (48, 48), "b": (16, 128), "c": (16, 16), "d": (64, 32), "e": (96, 96)}
    sizes = {**sizes, "f": (32, 144)}
    for start in torch.linspace(0.5, 0.8, 60).tolist():
        model = nn.ModuleDict({name: nn.Linear(*reversed(size)) for name, size in sizes.items()})
        sparsify(model, 0.83, "uniform", (16, 16), start_sparsity=start)
        layers = [m for m in model.values() if isinstance(m, SparseLayer)]
        assert all(m.final_active <= m.layout.active for m in layers)


@pytest.mark.parametrize("cover", [False, True])
def test_members_with_ragged_layers_train_together(cover):
    def members():
        models = [network(40, seed) for seed in range(2)]
        for model in models:
            sparsify(model, 0.6, "uniform", (32, 32), init="random")
        return models

    models, alone = members(), members()
    grouped = GroupedMembers(models)
    optimizer = torch.optim.SGD(grouped.parameters(), 0.05, 0.9)
    topology = GroupTopology(grouped, optimizer, "set", range(2), cover)
    single = [torch.optim.SGD(m.parameters(), 0.05, 0.9) for m in alone]
    topologies = [
        Topology(m, o, "set", s, cover=cover) for s, (m, o) in enumerate(zip(alone, single))
    ]
    for _ in range(3):
        x, y = torch.randn(2, 6, 3, 5, 5), torch.arange(6)
        sum(F.cross_entropy(logits, y) for logits in grouped(x)).backward()
        optimizer.step()
        optimizer.zero_grad()
        topology.update(0.5)
        for model, own, images, other in zip(alone, single, x, topologies):
            F.cross_entropy(model(images), y).backward()
            own.step()
            own.zero_grad()
            other.update(0.5)
    for model, own in zip(models, alone):
        assert model[2].layout.groups_by_kind == own[2].layout.groups_by_kind
        torch.testing.assert_close(model[2].dense_weight(), own[2].dense_weight())
