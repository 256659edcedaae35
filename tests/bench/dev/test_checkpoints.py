"""Checkpoints are smaller than dense ones, and can be continued from."""

from argparse import Namespace

from bench.dev import checkpoints


def test_bytes_fall_with_density():
    rows = list(checkpoints.rows(Namespace(model="mlp", block="16x16", repeats=1)))
    assert [row[0] for row in rows] == ["dense", "0.8", "0.9"]
    assert {len(row) for row in rows} == {len(checkpoints.COLUMNS)}
    dense, *sparse = (float(row[2]) for row in rows)
    assert dense == 1
    assert 1 > sparse[0] > sparse[1]
