"""Steps of timm's models: a row for each model and block."""

from argparse import Namespace

import pytest

from bench.dev.model_steps import COLUMNS, rows


def test_a_small_model_has_a_row():
    pytest.importorskip("timm")
    options = Namespace(models=["resnet10t"], blocks=[32], batch=2, pixels=64, rounds=1)
    (row,) = rows(options)
    assert row[:2] == ["resnet10t, 2, 64", "32"]
    assert len(row) == len(COLUMNS)
    assert all(float(cell.split()[0]) > 0 for cell in row[2:])
