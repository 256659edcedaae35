"""A row of the CPU's table for each layer, block and density."""

from argparse import Namespace

from bench.dev import cpu_table


def test_a_row_has_a_cell_in_every_column(monkeypatch):
    layers = (("net", 4, 6, 16, 32, 3, 2), ("mlp", 8, 0, 32, 32, 1, 1), ("other", *[1] * 6))
    monkeypatch.setattr(cpu_table, "LAYERS", layers)
    options = Namespace(
        networks=["net", "mlp"], blocks=[16, 32], densities=[0.5], dtype="float32", rounds=2
    )
    rows = list(cpu_table.rows(options))
    assert [row[:3] for row in rows] == [
        ["net 4 6 16 32 3 2", "(16, 16)", "0.50"],
        ["mlp 8 0 32 32 1 1", "(16, 16)", "0.50"],
        ["mlp 8 0 32 32 1 1", "(32, 32)", "1.00"],
    ]
    assert {len(row) for row in rows} == {len(cpu_table.COLUMNS)}
