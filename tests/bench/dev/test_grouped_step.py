"""Members as one network are timed beside each by itself."""

from argparse import Namespace

from bench.dev import grouped_step


def test_a_row_for_each_sparsity():
    options = Namespace(model="mlp", batch=2, members=2, block="16x16", sparsities=[0.5], rounds=1)
    (row,) = grouped_step.rows(options)
    assert row[0] == "0.5"
    assert len(row) == len(grouped_step.COLUMNS)
