"""The lists of a layout against a construction of every one by plain Python loops."""

import torch
from hypothesis import given, settings
from layout_lists import expected_pass, found_pass, layouts, place
from torch._subclasses.fake_tensor import FakeTensorMode

from sparse_kernels import BlockLayout
from sparse_kernels.index_tensors import IndexTensors


@given(layouts())
@settings(deadline=None, max_examples=60)
def test_every_list_equals_a_loop_over_the_slots(drawn):
    layout, ids = drawn
    assert found_pass(layout.index.forward) == expected_pass(ids, layout, 0)
    assert found_pass(layout.index.input_grad) == expected_pass(ids, layout, 1)
    slots = list(zip(*(t.tolist() for t in layout.index.slots)))
    for slot, block_id in enumerate(ids):
        if block_id < layout.total:
            assert slots[slot] == place(block_id, layout.grid)
        else:
            assert slots[slot][0] == layout.grid[0]
    assert layout.block_ids.tolist() == [min(i, layout.total) for i in ids]
    assert all(t.dtype == torch.int32 for t in layout.tensors())


@given(layouts())
@settings(deadline=None, max_examples=60)
def test_lists_start_at_zero_and_end_at_the_active_blocks(drawn):
    layout, ids = drawn
    for lists, written in ((layout.index.forward, 0), (layout.index.input_grad, 1)):
        start, *others = lists
        assert len(start) == layout.grid[written] + 1
        assert start[0] == 0
        assert start[-1] == layout.active
        assert all(len(t) == len(ids) == layout.slots for t in others)


def test_lists_are_built_without_asking_the_device_for_a_number():
    with FakeTensorMode():
        layout = BlockLayout((64, 64, 3, 3), (16, 16), torch.arange(18), taps="all")
        layout.update_(layout.expand_groups(layout.group_ids + 1), 9)
        assert layout.mask().shape == (4, 4, 3, 3)


def test_one_list_of_all_gets_its_names_back():
    index = BlockLayout((40, 30, 3, 3), (16, 16), torch.arange(9)).index
    for kept, again in zip(index, IndexTensors.of(index.tensors())):
        assert kept is again or all(a is b for a, b in zip(kept, again))
