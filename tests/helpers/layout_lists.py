"""A layout's lists of blocks, made by plain Python loops."""

import itertools


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


def found_pass(index):
    """Return the same lists as a layout holds them."""
    start = index.start.tolist()
    _, *lists = index
    entries = list(zip(*(t.tolist() for t in lists)))
    return [entries[a:b] for a, b in itertools.pairwise(start)]
