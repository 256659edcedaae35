"""Layouts drawn at random, and their lists of blocks made by plain Python loops."""

import itertools
import random

import torch
from hypothesis import strategies as st

from sparse_kernels import BlockLayout
from sparse_kernels.index_tensors import forward_index, input_grad_index
from sparse_kernels.layout import block_grid

WIDTHS = st.sampled_from([1, 3, 8, 16, 32, 40])


@st.composite
def layouts(draw, spare_slots=3):
    """Draw a layout and its ids: ragged grids, unused slots anywhere, ids above the total."""
    shape = [draw(st.integers(1, 70)), draw(st.integers(1, 70))]
    shape += [draw(st.integers(1, 3)), draw(st.integers(1, 3))]
    block = (draw(WIDTHS), draw(WIDTHS))
    total = torch.Size(block_grid(shape, block)).numel()
    active = draw(st.integers(1, min(total, 40)))
    generator = random.Random(draw(st.integers(0, 2**32)))
    ids = generator.sample(range(total), active)
    ids += [total + generator.randrange(3) for _ in range(draw(st.integers(0, spare_slots)))]
    generator.shuffle(ids)
    return BlockLayout(shape, block, torch.tensor(ids), active), ids


def place(block_id, grid):
    """Return (out block, in block, tap row, tap column) of an id."""
    _, in_blocks, taps_h, taps_w = grid
    pair, tap = divmod(block_id, taps_h * taps_w)
    return *divmod(pair, in_blocks), *divmod(tap, taps_w)


def expected_pass(ids, layout, row):
    """Return, for each row, its (slot, reduce, tap row, tap column) in order of the blocks."""
    rows = [[] for _ in range(layout.grid[row])]
    for slot, block_id in enumerate(ids):
        if block_id < layout.total:
            found = place(block_id, layout.grid)
            rows[found[row]].append((slot, found[1 - row], *found[2:]))
    return [sorted(entries, key=lambda e: e[1:]) for entries in rows]


def found_lists(layout):
    """Return the same lists of both passes as kernels read them, and the place of each slot."""
    lists = layout.tensors(), layout.sizes()
    passes = [_found_pass(read(*lists)) for read in (forward_index, input_grad_index)]
    return [*passes, list(zip(*(t.tolist() for t in layout.slot_index)))]


def _found_pass(index):
    start = index.start.tolist()
    _, *lists = index
    entries = list(zip(*(t.tolist() for t in lists)))
    return [entries[a:b] for a, b in itertools.pairwise(start)]
