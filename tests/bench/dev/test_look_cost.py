"""A row has the ratio of steps with the look at block ids and without, which leaves it in place."""

from argparse import Namespace

import torch

from bench.dev import look_cost
from bench.speed.networks import TINY
from sparse_engine import SparseLinear
from sparse_engine.layers.ids.block_ids import BlockIds


def test_a_row_for_each_batch_and_number_of_threads(monkeypatch):
    monkeypatch.setattr(look_cost, "TIMED", {"tiny": (TINY, "16x16")})
    options = Namespace(
        networks=["tiny"], sparsities=[0.5], batches=[1, 2], thread_counts=[1], rounds=1
    )
    threads = torch.get_num_threads()
    rows = list(look_cost.rows(options))
    torch.set_num_threads(threads)
    assert [row[:5] for row in rows] == [["tiny", "16x16", "0.5", b, "1"] for b in ("1", "2")]
    assert all(len(row) == len(look_cost.COLUMNS) for row in rows)


def test_the_look_is_left_out_inside_only():
    layer = SparseLinear(16, 16, block=(8, 8), density=0.5)
    with look_cost.no_look():
        layer.block_ids.zero_()
        assert layer.layout is layer._layout
        assert BlockIds.layout.fset is not None
    layer.block_ids.copy_(layer._layout.block_ids.flip(0))
    assert layer.layout.block_ids.equal(layer.block_ids)
