"""A row of the CPU's table for each layer, number of threads, block and density."""

from argparse import Namespace

from bench.dev import cpu_table


def test_a_row_has_a_cell_in_every_column(monkeypatch):
    layers = (("net", 4, 6, 16, 32, 3, 2), ("mlp", 8, 0, 32, 32, 1, 1), ("other", *[1] * 6))
    monkeypatch.setattr(cpu_table, "LAYERS", layers)
    options = Namespace(
        networks=["net", "mlp"], blocks=[16, 32], densities=[0.5], dtype="float32", rounds=2,
        threads=[1], contenders=["dense bf16", "slim", "BSR", "masked", "native"],
    )  # fmt: skip
    refused, *rows = cpu_table.rows(options)
    assert refused[1] == "no figure of BSR: PyTorch has no convolution with BSR weights"
    assert [row[:4] for row in rows] == [
        ["net 4 6 16 32 3 2", "1", "(16, 16)", "0.50"],
        ["mlp 8 0 32 32 1 1", "1", "(16, 16)", "0.50"],
        ["mlp 8 0 32 32 1 1", "1", "(32, 32)", "1.00"],
    ]
    cells = [dict(zip(cpu_table.COLUMNS, row, strict=True)) for row in rows]
    assert [row["dense compiled"] for row in cells] == ["-"] * 3  # not asked for
    assert [row["BSR"] == "-" for row in cells] == [True, False, False]
    assert all(float(row["native"].split()[0]) > 0 for row in cells)


def test_a_row_for_each_number_of_threads_and_without_native(monkeypatch):
    monkeypatch.setattr(cpu_table, "LAYERS", (("mlp", 8, 0, 32, 32, 1, 1),))
    monkeypatch.setattr(cpu_table.torch, "set_num_threads", lambda _: None)
    options = Namespace(
        networks=["mlp"], blocks=[16], densities=[0.5], dtype="float32", rounds=1,
        threads=[1, 2], contenders=[],
    )  # fmt: skip
    rows = [dict(zip(cpu_table.COLUMNS, row, strict=True)) for row in cpu_table.rows(options)]
    assert [(row["threads"], row["native"], row["dx"]) for row in rows] == [
        ("1", "-", "-"),
        ("2", "-", "-"),
    ]
