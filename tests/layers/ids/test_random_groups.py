"""Random first blocks: as many as asked of each kind, in every row and column of blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparse_engine import SparseConv2d, sparsify
from sparse_engine.layers.ids.random_groups import random_groups
from sparse_engine.layers.plan import LayerPlan
from sparse_kernels.block_kinds import BlockKinds


@st.composite
def draws(draw):
    """Return the kinds of a weight, counts of each, and a generator's seed."""
    shape = [draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 3)), 3]
    block = [min(draw(st.integers(1, 16)), n) for n in shape[:2]]
    kinds = BlockKinds.of(shape, block, draw(st.sampled_from([1, 3, shape[2] * 3])))
    count = draw(st.integers(1, sum(kinds.groups)))
    return kinds, kinds.split(count), draw(st.integers(0, 2**20))


def lines(ids, kinds):
    """Return how many rows, and how many columns of blocks have one of these groups."""
    pairs = (ids // kinds.places).tolist()
    columns = kinds.grid[1]
    return len({pair // columns for pair in pairs}), len({pair % columns for pair in pairs})


def uniform(kinds, counts, seed):
    """Return a uniform draw of so many groups of each kind, by a loop."""
    left, ids = list(counts), []
    for group in torch.randperm(sum(kinds.groups), generator=seeded(seed)).tolist():
        kind = int(kinds.of_groups(torch.tensor([group])))
        if left[kind]:
            left[kind] -= 1
            ids.append(group)
    return torch.tensor(sorted(ids))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=150, deadline=None)
@given(draws())
def test_every_row_and_column_has_a_group_as_far_as_they_go_round(drawn):
    kinds, counts, seed = drawn
    ids = random_groups(kinds, counts, seeded(seed))
    assert len(ids.unique()) == len(ids)
    assert kinds.count(ids) == counts
    plain, reached = uniform(kinds, counts, seed), lines(ids, kinds)
    assert all(ours >= theirs for ours, theirs in zip(reached, lines(plain, kinds)))
    if lines(plain, kinds) == kinds.grid:
        assert torch.equal(ids, plain), "a draw that reaches all is not touched"
    areas = [(o.stop - o.start, i.stop - i.start) for o, i in kinds.areas]
    if len(counts) == 1:
        assert reached == tuple(min(n, sum(counts)) for n in kinds.grid)
    elif all(count >= max(area) for count, area in zip(counts, areas)):
        assert reached == kinds.grid


@pytest.mark.parametrize(("shape", "active"), [((64, 32, 3, 3), 4), ((40, 40), 3)])
def test_every_group_can_be_drawn(shape, active):
    plan = LayerPlan.full("", shape, (16, 16))
    counts = plan.kinds.split(active)
    drawn = torch.cat([random_groups(plan.kinds, counts, seeded(seed)) for seed in range(600)])
    of_each = torch.bincount(drawn, minlength=plan.total)
    for kind, count in enumerate(counts):
        own = of_each[plan.kinds.of_groups(torch.arange(plan.total)) == kind]
        assert count == 0 or own.min() > own.float().mean() / 4


def test_few_kinds_know_what_others_reach():
    """Three blocks of a 3x3 grid with ragged edges: one in each row and column, every time."""
    kinds = BlockKinds.of((40, 40), (16, 16))
    for seed in range(100):
        assert lines(random_groups(kinds, (1, 1, 1, 0), seeded(seed)), kinds) == (3, 3)


def test_shapes_are_known_without_numbers():
    with FakeTensorMode():
        layer = SparseConv2d(64, 64, 3, density=0.05, block=(16, 16))
    assert layer.values.shape == (7, 16, 16)


@pytest.mark.parametrize(("taps", "density"), [("each", 3 / 36), ("row", 2 / 6)])
def test_every_channel_of_a_sparse_network_learns_from_the_first_step(taps, density):
    """A constant behind a batch norm and a ReLU has no gradient, and would never have one."""
    for seed in range(8):
        torch.manual_seed(seed)
        parts = [(nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.ReLU()) for _ in range(2)]
        model = nn.Sequential(nn.Conv2d(3, 32, 3), *parts[0], *parts[1])
        densities = {"1": density, "4": density}
        sparsify(
            model,
            distribution=densities,
            block=(16, 16),
            skip="0",
            init="random",
            generator=seeded(seed),
            taps=taps,
        )
        layers = [m for m in model if isinstance(m, SparseConv2d)]
        before = [layer.weight.detach().clone() for layer in layers]
        out = model(torch.randn(8, 3, 12, 12))
        (out * torch.randn_like(out)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
        assert len(layers) == 2
        for layer, old in zip(layers, before):
            moved = (layer.weight != old).any(3).any(2)
            assert moved.any(1).all()
            assert moved.any(0).all()
