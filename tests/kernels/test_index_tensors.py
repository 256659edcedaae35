"""The lists of a layout against a construction of every one by plain Python loops."""

import torch
from hypothesis import given, settings
from layout_lists import expected_pass, found_lists, layouts, place
from torch._subclasses.fake_tensor import FakeTensorMode

from sparse_kernels import BlockLayout
from sparse_kernels.index_tensors import forward_index, input_grad_index, make_lists, slot_index


@given(layouts())
@settings(deadline=None, max_examples=60)
def test_every_list_equals_a_loop_over_the_slots(drawn):
    layout, ids = drawn
    *passes, slots = found_lists(layout)
    assert passes == [expected_pass(ids, layout, written) for written in (0, 1)]
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
    index = layout.tensors(), layout.sizes()
    for lists, written in ((forward_index(*index), 0), (input_grad_index(*index), 1)):
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


def test_a_cpu_keeps_ids_alone_and_a_gpu_keeps_what_can_be_made_of_them():
    layout = BlockLayout((40, 30, 3, 3), (16, 16), torch.arange(9))
    assert [t.nbytes for t in layout.tensors()] == [4 * 9]
    with FakeTensorMode():
        kept = make_lists(torch.arange(9, device="cuda"), layout.grid)
        for read in (forward_index, input_grad_index, slot_index):
            of_kept, made = read(kept, layout.sizes()), read(kept[:1], layout.sizes())
            assert all(any(t is one for one in kept) for t in of_kept)
            assert not any(t is one for one in kept for t in made)
            assert [(t.shape, t.dtype) for t in of_kept] == [(t.shape, t.dtype) for t in made]
