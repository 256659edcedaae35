"""A layer and its BlockLayout through any sequence of changes, against plain lists.

A case is one step: a change, then every invariant.
"""

import copy
import io
import math
import pickle
import random

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from layout_lists import expected_pass, found_lists, place

from sparse_engine import SparseConv2d, SparseLinear
from sparse_kernels import BlockLayout
from sparse_kernels.layout import block_grid, group_size

SIZES = st.integers(1, 40)
WIDTHS = st.sampled_from([1, 3, 8, 16, 32])
SEEDS = st.integers(0, 2**32)
STEPS = 10


class LayerMachine(RuleBasedStateMachine):
    """`ids` is the reference: the block of each slot, `total` where it is unused."""

    cases = 0

    @initialize(
        outputs=SIZES,
        inputs=SIZES,
        kernel=st.sampled_from([None, (1, 1), (3, 3), (2, 3), (3, 1)]),
        block=st.tuples(WIDTHS, WIDTHS),
        taps=st.sampled_from(["each", "row", "all"]),
        spare=st.integers(0, 3),
        seed=SEEDS,
    )
    def make(self, outputs, inputs, kernel, block, taps, spare, seed):
        self.shape = (outputs, inputs, *(kernel or (1, 1)))
        self.kernel, self.block = kernel, block
        self.taps = taps if kernel else "each"
        self.group = group_size(self.shape, self.taps)
        self.total = torch.Size(block_grid(self.shape, block)).numel()
        groups = self.total // self.group
        slots = min(groups, random.Random(seed).randint(1, min(groups, 30)) + spare)
        self.draw_ids(slots, seed)
        self.layer = self.new_layer(self.new_layout(self.ids))

    def draw_ids(self, slots, seed):
        draw = random.Random(seed)
        active = draw.randint(1, slots)
        groups = draw.sample(range(self.total // self.group), active)
        groups += [self.total // self.group] * (slots - active)
        draw.shuffle(groups)
        taps = range(self.group)
        self.ids = [min(g * self.group + t, self.total) for g in groups for t in taps]

    def new_layout(self, ids):
        active = sum(i < self.total for i in ids)
        return BlockLayout(self.shape, self.block, torch.tensor(ids), active, self.taps)

    def new_layer(self, layout):
        outputs, inputs = self.shape[:2]
        if self.kernel:
            return SparseConv2d(inputs, outputs, self.kernel, layout=layout, block=self.block)
        return SparseLinear(inputs, outputs, layout=layout, block=self.block)

    @rule(seed=SEEDS)
    def update(self, seed):
        self.draw_ids(len(self.ids) // self.group, seed)
        active = sum(i < self.total for i in self.ids)
        self.layer.layout.update_(torch.tensor(self.ids), active)

    @rule()
    def go_through_a_mask(self):
        layout = BlockLayout.from_mask(
            self.layer.layout.mask(), self.shape, self.block, taps=self.taps
        )
        self.ids = sorted(i for i in self.ids if i < self.total)
        self.layer = type(self.layer).from_dense(self.layer.to_dense(), layout=layout)

    @rule(seed=SEEDS)
    def save_and_load(self, seed):
        file = io.BytesIO()
        torch.save(self.layer.state_dict(), file)
        file.seek(0)
        ids = self.ids
        self.draw_ids(len(ids) // self.group, seed)
        fresh = self.new_layer(self.new_layout(self.ids)).to(self.layer.values.dtype)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        self.ids, self.layer = ids, fresh

    @rule(seed=SEEDS)
    def load_dense(self, seed):
        state = {"weight": self.layer.dense_weight().detach()}
        state["weight"] = state["weight"] + 1e-3 * torch.randn_like(state["weight"])
        if self.layer.bias is not None:
            state["bias"] = self.layer.bias.detach()
        self.layer.load_state_dict(state)
        self.ids = self.layer.layout.block_ids.tolist()
        active = [i for i in self.ids if i < self.total]
        assert active == sorted(set(active))

    @rule(dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    def change_type(self, dtype):
        self.layer.to(dtype)

    @rule()
    def move(self):
        self.layer.to("cpu")
        assert self.layer.layout.to("cpu") is self.layer.layout
        with pytest.raises(ValueError, match="meta"):
            self.layer.layout.validate(self.layer.layout.block_ids.to("meta"))
        state = {k: v.to("meta") for k, v in self.layer.state_dict().items()}
        with pytest.raises(RuntimeError, match="should be an ordinary tensor with numbers"):
            self.layer.load_state_dict(state)

    @rule(how=st.sampled_from([copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]))
    def copy(self, how):
        twin = how(self.layer)
        self.layer.layout.update_(torch.full_like(self.layer.layout.block_ids, self.total), 0)
        self.layer = twin

    @rule(seed=SEEDS)
    def refuse_ids_that_do_not_fit(self, seed):
        draw, ids = random.Random(seed), list(self.ids)
        place_ = draw.randrange(len(ids))
        ids[place_] = draw.choice([-1, self.total + 1, 2**31 - 1, *self.ids])
        used = [i for i in ids if i != self.total]
        groups = [ids[i : i + self.group] for i in range(0, len(ids), self.group)]
        whole = all(
            g == list(range(g[0], g[0] + self.group)) and g[0] % self.group == 0
            for g in groups
            if g != [self.total] * self.group
        )
        good = used and len(set(used)) == len(used) and 0 <= min(used) <= max(used) < self.total
        if good and whole:
            assert self.layer.layout.validate(torch.tensor(ids)) == len(used)
        else:
            with pytest.raises(ValueError, match="block"):
                self.layer.layout.validate(torch.tensor(ids))

    @invariant()
    def lists_are_those_of_plain_loops(self):
        type(self).cases += 1
        layout = self.layer.layout
        used = [i for i in self.ids if i < self.total]
        assert layout.block_ids.tolist() == self.ids
        assert (layout.active, layout.slots, layout.total) == (len(used), len(self.ids), self.total)
        assert layout.mask().flatten().nonzero().flatten().tolist() == sorted(set(used))
        *passes, found = found_lists(layout)
        assert passes == [expected_pass(self.ids, layout, written) for written in (0, 1)]
        for slot, block_id in enumerate(self.ids):
            if block_id < self.total:
                assert found[slot] == place(block_id, layout.grid)
        assert all(t.dtype == torch.int32 for t in layout.tensors())
        assert layout.validate(layout.block_ids) == layout.active

    @invariant()
    def values_have_the_shape_of_the_slots(self):
        layer = self.layer
        assert tuple(layer.values.shape) == (len(self.ids), *reversed(layer.layout.block))
        stored = layer.layout.outside()
        real = layer.values.numel() if stored is None else int((~stored).sum())
        assert layer.density == real / math.prod(layer.layout.shape)


# Steps a sequence: at most ten, and at least half of that on average.
@pytest.mark.parametrize("sequences", [60, pytest.param(2_000, marks=pytest.mark.slow)])
def test_any_sequence_of_changes_keeps_a_layout_whole(sequences):
    LayerMachine.cases = 0
    options = settings(max_examples=sequences, stateful_step_count=STEPS, deadline=None)
    run_state_machine_as_test(LayerMachine, settings=options)
    print(f"{LayerMachine.cases} cases")
    assert LayerMachine.cases >= 5 * sequences
