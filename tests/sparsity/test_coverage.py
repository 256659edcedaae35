"""Updates that leave no channel of a layer without a block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparse_engine import DynamicSparsity, SparseConv2d, sparsify
from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.integrations.trainer_topology import TrainerTopology
from sparse_engine.layers.base import SparseLayer
from sparse_engine.methods.resolve import resolve
from sparse_engine.sparsity.drop_and_grow import select_drop_and_grow
from sparse_engine.sparsity.topology import Topology
from sparse_engine.training.network import build_network
from sparse_kernels import BlockLayout


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def empty_lines(layout: BlockLayout) -> tuple[int, int]:
    """Return how many rows and how many columns of blocks are empty."""
    used = layout.mask().flatten(2).any(2)
    return int((~used.any(1)).sum()), int((~used.any(0)).sum())


@st.composite
def swaps(draw):
    rows, columns, places = (draw(st.integers(1, most)) for most in (5, 5, 3))
    total = rows * columns * places
    active = draw(st.integers(1, total))
    ids = draw(st.permutations(range(total)))[:active] + [total + 1] * draw(st.integers(0, 3))
    ids = draw(st.permutations(ids))
    drop = draw(st.permutations(range(len(ids))))
    grow = draw(st.permutations(range(total)))
    dropped = draw(st.integers(0, active))
    most = min(total, len(ids)) - active + dropped
    return (rows, columns, 1, places), ids, drop, grow, dropped, draw(st.integers(0, most))


@settings(max_examples=150, deadline=None)
@given(swaps())
def test_it_equals_a_naive_loop(case):
    shape, ids, drop, grow, dropped, grown = case
    total, (_, columns, _, places) = shape[0] * shape[1] * shape[3], shape
    lines = lambda group: {("row", group // places // columns), (group // places % columns,)}  # noqa: E731
    active = [z for z, group in enumerate(ids) if group < total]
    by_strength = sorted(active, key=lambda z: -drop[z])
    seen, last = set(), set()
    for z in by_strength:
        last |= {z} if lines(ids[z]) - seen else set()
        seen |= lines(ids[z])
    freed = sorted(active, key=lambda z: (z in last, drop[z]))[:dropped]
    kept = {ids[z] for z in active if z not in freed}
    covered = set().union(*map(lines, kept))
    seen, first = set(), set()
    free = sorted(set(range(total)) - kept, key=lambda group: -grow[group])
    for group in free:
        first |= {group} if lines(group) - seen - covered and grow[group] else set()
        seen |= lines(group)
    best = sorted(free, key=lambda group: (group not in first, -grow[group]))[:grown]

    layout = BlockLayout(shape, (1, 1), torch.tensor(ids), len(active))
    scores = torch.tensor(drop).float(), torch.tensor(grow).float()
    slots, new = select_drop_and_grow(layout, *scores, dropped, grown, cover=True)
    assert slots.tolist()[:dropped] == freed
    assert new.tolist()[:grown] == best


@pytest.mark.parametrize("shape", [(96, 80, 3, 3), (104, 72, 3, 3)])
@pytest.mark.parametrize("taps", ["each", "row", "all"])
def test_no_row_and_no_column_stays_empty(shape, taps):
    """Ragged edges have counts of their own, so that their channels have a block at all."""
    layer = SparseConv2d(shape[1], shape[0], 3, density=0.4, block=(16, 16), taps=taps)
    assert empty_lines(layer.layout) == (0, 0)
    model = nn.Sequential(layer)
    topology = Topology(model, None, "set", cover=True)
    for _ in range(20):
        topology.update(0.3)
        assert empty_lines(layer.layout) == (0, 0)


def test_channels_that_nothing_asks_for_stay_empty():
    layout = BlockLayout((64, 64), (16, 16), torch.tensor([5, 10, 15]))
    grow = torch.zeros(16)
    grow[4], grow[7] = 3, 2
    _, new = select_drop_and_grow(layout, torch.tensor([1.0, 2, 3]), grow, 1, cover=True)
    assert new.tolist() == [4]  # of the second row, and of the first column, which is empty
    grow[1] = 1
    _, new = select_drop_and_grow(layout, torch.tensor([1.0, 2, 3]), grow, 2, cover=True)
    assert sorted(new.tolist()) == [1, 4]


@pytest.mark.parametrize("rule", ["set", "rigl"])
def test_a_loop_of_ones_own(rule):
    """Without cover the same loop ends with channels that have no block."""
    lost = []
    for cover in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96))
        sparsify(model, 0.65, "uniform", (16, 16), init="random")
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        dynamic = DynamicSparsity(model, optimizer, rule, interval=1, total_steps=40, cover=cover)
        for _ in range(30):
            model(torch.randn(8, 64)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            dynamic.step()
        layouts = [m.layout for m in model if isinstance(m, SparseLayer)]
        lost.append(sum(sum(empty_lines(layout)) for layout in layouts))
    assert lost[0] == 0 < lost[1]


def test_the_trainer_and_callbacks_pass_it_on():
    config = resolve(Config(method="rigl", model="mlp", block="8x8", cover=True))
    network = build_network(config, TABLE["digits"], torch.device("cpu"))
    assert network.topology.cover
    assert network.topology.of(network.model, None).cover
    callback = TrainerTopology("set", cover=True)
    callback.begin(network.model, torch.optim.SGD(network.model.parameters(), 0.1), 400)
    assert callback.dynamic.topology.cover
