"""BlockLayout against a construction of every list by plain Python loops."""

import copy
import pickle
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_lists import WIDTHS, found_lists, layouts

from sparse_kernels import BlockLayout
from sparse_kernels.layout import block_grid, clamp_block


@given(layouts())
@settings(deadline=None, max_examples=60)
def test_mask_round_trip(drawn):
    layout, ids = drawn
    mask = layout.mask()
    used = sorted(i for i in ids if i < layout.total)
    assert mask.shape == layout.grid
    assert mask.flatten().nonzero().flatten().tolist() == used
    again = BlockLayout.from_mask(mask, layout.shape, layout.block)
    assert again.block_ids.tolist() == used
    assert (again.active, again.density) == (layout.active, layout.active / layout.total)


@given(layouts(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_update_equals_a_new_layout_at_the_old_addresses(drawn, generator):
    layout, ids = drawn
    block_ids, addresses = layout.block_ids, [t.data_ptr() for t in layout.tensors()]
    used = iter(generator.sample(range(layout.total), layout.active))
    changed = [next(used) if i < layout.total else i for i in ids]
    layout.update_(torch.tensor(changed))
    fresh = BlockLayout(layout.shape, layout.block, torch.tensor(changed), layout.active)
    assert [t.data_ptr() for t in layout.tensors()] == addresses
    assert found_lists(layout) == found_lists(fresh)
    assert block_ids.equal(fresh.block_ids)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_ids_of_any_integer_type(dtype):
    layout = BlockLayout((40, 30, 3, 3), (16, 16), torch.tensor([52, 7, 100], dtype=dtype), 2)
    assert layout.block_ids.tolist() == [52, 7, 54]


def test_an_update_compiles_into_one_graph():
    layout = BlockLayout((64, 64, 3, 3), (16, 16), torch.arange(20))
    fresh = BlockLayout((64, 64, 3, 3), (16, 16), torch.arange(20) + 5)
    torch.compile(layout.update_, fullgraph=True, backend="eager")(torch.arange(20) + 5)
    assert found_lists(layout) == found_lists(fresh)


@pytest.mark.parametrize(
    ("block", "channels", "wanted"),
    [
        ((32, 32), (16, 3), (16, 16)),
        ((32, 32), (17, 33), (32, 32)),
        ((64, 64), (40, 300), (48, 64)),
        ((8, 4), (3, 3), (8, 4)),
        ((1, 1), (5, 5), (1, 1)),
    ],
)
def test_a_block_is_no_wider_than_the_channels_rounded_up(block, channels, wanted):
    assert clamp_block(block, *channels) == wanted


@pytest.mark.parametrize("block", [(0, 8), (8, -1), (8,), (8, 8, 8), (8.0, 8)])
def test_a_block_must_be_two_positive_integers(block):
    with pytest.raises(ValueError, match=r"block must be two positive integers .* found"):
        clamp_block(block, 32, 32)


@pytest.mark.parametrize("shape", [(8,), (8, 8, 3), (8, 0), (8, 8, 3, 0)])
def test_a_shape_must_be_two_or_four_positive_sizes(shape):
    with pytest.raises(ValueError, match="sizes \\(O, C\\) or \\(O, C, R, S\\), all positive"):
        BlockLayout(shape, (8, 8), torch.arange(1))


@pytest.mark.parametrize("ids", [torch.arange(0), torch.zeros(2, 2)])
def test_ids_must_be_a_list_that_is_not_empty(ids):
    with pytest.raises(ValueError, match="must be \\[Z\\] with Z at least 1, found shape"):
        BlockLayout((8, 8), (8, 8), ids)


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(4, 2, 3, 3),
        torch.ones(2, 4, 3, 3, dtype=torch.bool),
        torch.ones(72, dtype=torch.bool),
        torch.ones(4, 2, dtype=torch.bool),
    ],
)
def test_a_mask_must_be_boolean_and_of_the_grids_shape(mask):
    with pytest.raises(ValueError, match=r"mask must be bool \[4, 2, 3, 3\].*found torch\."):
        BlockLayout.from_mask(mask, (64, 32, 3, 3), (16, 16))


def test_a_linear_mask_may_be_flat():
    mask = torch.tensor([[True, False], [False, True]])
    layout = BlockLayout.from_mask(mask, (32, 32), (16, 16))
    assert layout.block_ids.tolist() == [0, 3]


def test_a_mask_without_a_block_is_refused():
    with pytest.raises(ValueError, match="Z at least 1"):
        BlockLayout.from_mask(torch.zeros(2, 2, dtype=torch.bool), (32, 32), (16, 16))


def test_an_update_must_keep_the_slots():
    layout = BlockLayout((32, 32), (16, 16), torch.arange(3))
    with pytest.raises(ValueError, match=r"keep the 3 slots, found ids \[2\]"):
        layout.update_(torch.arange(2))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([0, 1]), r"integer \[3\], found torch.int64 \[2\]"),
        (torch.tensor([0.0, 1.0, 4.0]), r"integer \[3\], found torch.float32 \[3\]"),
        (torch.tensor([-1, 1, 4]), "from 0 to 4, found -1"),
        (torch.tensor([0, 1, 5]), "from 0 to 4, found 0 to 5"),
        (torch.tensor([4, 4, 4]), "a block at least should be active"),
        (torch.tensor([2, 2, 4]), "distinct"),
    ],
)
def test_ids_that_do_not_fit(ids, message):
    layout = BlockLayout((32, 32), (16, 16), torch.tensor([0, 3, 4]), active=2)
    assert layout.validate(torch.tensor([4, 1, 2])) == 2
    assert layout.validate(torch.tensor([0, 1, 2])) == 3
    with pytest.raises(ValueError, match=message):
        layout.validate(ids)


@st.composite
def grouped_layouts(draw):
    """Draw a layout of strips or of all taps and its groups' ids, unused groups anywhere."""
    shape = [draw(st.integers(1, 40)) for _ in range(2)] + [draw(st.integers(1, 3)) for _ in "RS"]
    block = (draw(WIDTHS), draw(WIDTHS))
    taps = draw(st.sampled_from(["row", "all"]))
    group = shape[3] if taps == "row" else shape[2] * shape[3]
    total = torch.Size(block_grid(shape, block)).numel()
    groups = list(range(total // group))
    generator = random.Random(draw(st.integers(0, 2**32)))
    groups = generator.sample(groups, draw(st.integers(1, min(len(groups), 12))))
    active = len(groups)
    groups += [total // group] * draw(st.integers(0, 2))
    generator.shuffle(groups)
    ids = [min(number * group + tap, total) for number in groups for tap in range(group)]
    return BlockLayout(shape, block, torch.tensor(ids), active * group, taps), groups


@given(grouped_layouts(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_taps_that_go_together_live_in_one_group_of_slots(drawn, generator):
    layout, groups = drawn
    assert layout.group_ids.tolist() == groups
    assert layout.validate(layout.block_ids) == layout.active
    mask = layout.mask().flatten(3 if layout.taps == "row" else 2)
    assert mask.all(-1).equal(mask.any(-1))
    used = [number for number in groups if number < layout.total // layout.group]
    assert mask.any(-1).flatten().nonzero().flatten().tolist() == sorted(used)
    again = BlockLayout.from_mask(layout.mask(), layout.shape, layout.block, layout.taps)
    assert again.mask().equal(layout.mask())
    generator.shuffle(groups)
    fresh = BlockLayout(layout.shape, layout.block, layout.block_ids.clone(), taps="each")
    ids = layout.expand_groups(torch.tensor(groups))
    layout.update_(ids)
    fresh.update_(ids)
    assert layout.group_ids.tolist() == groups
    for mine, theirs in zip(layout.tensors(), fresh.tensors(), strict=True):
        assert mine.equal(theirs)


def test_an_update_may_change_the_count_of_active_blocks():
    layout = BlockLayout((32, 32, 2, 1), (16, 16), torch.arange(6), taps="all")
    layout.update_(torch.tensor([8, 8, 2, 3, 8, 8]), 2)
    assert (layout.active, layout.density, layout.slots) == (2, 0.25, 6)
    assert layout.mask().sum() == layout.active == layout.validate(layout.block_ids)
    with pytest.raises(ValueError, match="groups of 2 slots, found 3"):
        layout.update_(torch.arange(6), 3)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([0, 2], "whole groups of 2"), ([1, 0], "whole groups of 2"), ([0, 8], "whole groups of 2")],
)
@pytest.mark.parametrize(("taps", "rows"), [("row", 2), ("all", 1)])
def test_ids_that_are_no_whole_groups(taps, rows, ids, message):
    layout = BlockLayout((32, 32 // rows, rows, 2), (16, 16), torch.tensor([4, 5]), taps=taps)
    with pytest.raises(ValueError, match=f"{message} taps in order, as taps='{taps}' says"):
        layout.validate(torch.tensor(ids))
    assert f"taps='{taps}'" in repr(layout)


@pytest.mark.parametrize(("taps", "size", "what"), [("row", 3, "a strip"), ("all", 9, "a pair")])
def test_what_taps_that_go_together_refuse(taps, size, what):
    with pytest.raises(ValueError, match="taps must be 'each', 'row' or 'all', found 'both'"):
        BlockLayout((8, 8), (8, 8), torch.arange(1), taps="both")
    with pytest.raises(ValueError, match=f"groups of {size} slots, found {size + 1}"):
        BlockLayout((8, 8, 3, 3), (8, 8), torch.arange(size + 1), size, taps)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, 1, 1] = False
    with pytest.raises(ValueError, match=f"{what} with some of its taps; with taps='{taps}'"):
        BlockLayout.from_mask(mask, (8, 8, 3, 3), (8, 8), taps)


def test_moving_keeps_the_sizes():
    layout = BlockLayout((32, 32), (16, 16), torch.tensor([0, 3, 4]), active=2)
    assert layout.to("cpu") is layout
    moved = layout.to("meta")
    assert moved.device.type == "meta"
    assert (moved.density, moved.slots, moved.sizes()) == (0.5, 3, layout.sizes())
    assert all(t.is_meta for t in moved.tensors())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_equal_and_its_own(copied):
    layout = BlockLayout((32, 32), (16, 16), torch.tensor([0, 3]))
    other = copied(layout)
    other.update_(torch.tensor([1, 2]))
    assert layout.block_ids.tolist() == [0, 3]
    assert other.block_ids.tolist() == [1, 2]
    assert other.block == layout.block


def test_repr_tells_the_sizes():
    text = repr(BlockLayout((32, 32), (16, 16), torch.tensor([0, 3, 4]), active=2))
    assert "active=2 of 4, slots=3" in text
