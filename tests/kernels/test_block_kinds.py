"""Kinds of blocks against the weight itself: what they hold, and how counts are split over them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_engine import SparseLinear
from sparse_engine.layers.modules import SparseConv2d
from sparse_engine.layers.plan import LayerPlan
from sparse_kernels import BlockLayout
from sparse_kernels.block_kinds import BlockKinds
from sparse_kernels.layout import block_grid, clamp_block, group_size

CHANNELS = st.integers(1, 24)
KERNELS = st.sampled_from([(), (1, 1), (3, 2), (1, 3), (3, 1)])


@st.composite
def weights(draw):
    """Return the shape of a weight, its block, clamped, and its taps."""
    shape = (draw(CHANNELS), draw(CHANNELS), *draw(KERNELS))
    block = clamp_block((draw(st.integers(1, 20)), draw(st.integers(1, 20))), *shape[:2])
    return shape, block, draw(st.sampled_from(["each", "row", "all"]))


@settings(max_examples=60, deadline=None)
@given(weights())
def test_kinds_hold_what_the_weight_has(weight):
    shape, block, taps = weight
    group = group_size(shape, taps)
    kinds, grid = BlockKinds.of(shape, block, group), block_grid(shape, block)
    channels = [
        [min(width, size - width * i) for i in range(blocks)]
        for size, width, blocks in zip(shape, block, grid)
    ]
    sizes = torch.tensor(channels[0])[:, None] * torch.tensor(channels[1])
    sizes = (sizes[:, :, None] * group).expand(-1, -1, kinds.places).flatten()
    found = kinds.of_groups(torch.arange(len(sizes)))
    assert [kinds.weights[k] for k in found.tolist()] == sizes.tolist()
    assert kinds.groups == tuple(int((found == k).sum()) for k in range(len(kinds.groups)))
    assert kinds.weights_of(kinds.groups) == math.prod(shape)
    assert kinds.of_groups(torch.tensor([len(sizes)])).item() == len(kinds.groups)
    whole = all(n % b == 0 or n < b for n, b in zip(shape, block))
    assert (len(kinds.groups) == 1) == whole


@settings(max_examples=60, deadline=None)
@given(weights())
def test_counts_rise_one_by_one_in_proportion(weight):
    shape, block, taps = weight
    kinds = BlockKinds.of(shape, block, group_size(shape, taps))
    total, before = sum(kinds.groups), (0,) * len(kinds.groups)
    for count in range(1, total + 1):
        counts = kinds.split(count)
        assert sum(counts) == count
        assert sorted(b - a for a, b in zip(before, counts))[-1] == 1
        for own, most in zip(counts, kinds.groups):
            assert own <= most
            assert abs(own - count * most / total) <= 1
        before = counts
    assert before == kinds.groups
    every = kinds.weights_in(np.arange(total + 1))
    assert every.tolist() == [kinds.weights_in(n) for n in range(total + 1)]


@settings(max_examples=80, deadline=None)
@given(weights(), st.floats(0.01, 1), st.integers(0, 2**20))
def test_the_density_said_is_the_share_of_weights_stored(weight, density, seed):
    shape, block, taps = weight
    plan = replace(LayerPlan.full("", shape, block, taps)).at(density)
    layout = plan.random(torch.Generator().manual_seed(seed))
    kind = SparseLinear if len(shape) == 2 else SparseConv2d
    sizes = (shape[1], shape[0], shape[2:])[: len(shape[:3])]
    layer = kind(*sizes, bias=False, layout=layout)
    torch.nn.init.ones_(layer.values)
    said = int((layer.weight != 0).sum()) / math.prod(shape)
    again = BlockLayout(layout.shape, layout.block, layout.block_ids, taps=taps)
    assert plan.density == layer.density == again.active_weights / plan.weights == said
    assert again.groups_by_kind == layout.groups_by_kind == plan.groups_by_kind
    for other in (plan.active - plan.group, plan.active + plan.group):
        if 0 < other <= plan.total:
            assert abs(said - density) <= abs(replace(plan, active=other).density - density) + 1e-9


def test_counts_of_ids_from_elsewhere_are_counted_and_kept_by_updates():
    layout = BlockLayout((6, 10), (4, 4), torch.tensor([0, 1, 5, 6]), active=3)
    assert layout.kinds.groups == (2, 1, 2, 1)
    assert (layout.groups_by_kind, layout.active_weights) == ((2, 0, 0, 1), 16 + 16 + 4)
    layout.update_(torch.tensor([2, 6, 3, 6]), active=2)
    assert (layout.groups_by_kind, layout.active_weights) == ((0, 1, 1, 0), 8 + 8)
    layout.groups_by_kind = (0, 1, 1, 0)
    assert layout.to("cpu").groups_by_kind == (0, 1, 1, 0)
    with pytest.raises(ValueError, match="are not the 2 active blocks"):
        layout.groups_by_kind = (1, 1, 1, 0)
