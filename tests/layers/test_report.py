"""The report of a network's layers, in words and numbers."""

import pytest
import torch
from torch import nn

from sparse_engine import SparseConv2d, SparseLinear, report, sparsify
from sparse_kernels.memory_order import in_order


def test_report_text_and_numbers():
    model = nn.Sequential()
    model.body = nn.Conv2d(32, 20, 3)
    model.head = nn.Linear(20, 10)
    found = sparsify(model, 0.5, "uniform", (16, 16), skip=["head"])
    row = found.rows[0]
    assert (row.kind, row.shape, row.block, row.total) == (
        "SparseConv2d",
        (20, 32, 3, 3),
        (16, 16),
        36,
    )
    assert row.weights == (model.body.dense_weight() != 0).sum()
    assert row.dense_weights == 20 * 32 * 9
    values = model.body.values.untyped_storage().nbytes()
    assert row.stored_bytes - row.index_bytes == row.active * 256 * 4 == values
    assert found.stored_bytes == row.stored_bytes + 800
    assert found.index_bytes == row.index_bytes == model.body.index_bytes
    assert found.density == row.weights / row.dense_weights
    lines = str(found).splitlines()
    assert lines[0].split() == [
        "layer",
        "kind",
        "shape",
        "block",
        "blocks",
        "density",
        "weights",
        "bytes",
        "of",
        "lists",
        "runs",
        "on",
    ]
    assert lines[1].split() == [
        "body",
        "SparseConv2d",
        "20x32x3x3",
        "16x16",
        f"{row.active}/36",
        f"{row.density:.3f}",
        str(row.weights),
        str(row.stored_bytes),
        str(row.index_bytes),
        "-",
    ]
    assert lines[2].split() == [
        "head",
        "Linear",
        "(skip)",
        "10x20",
        "-",
        "-",
        "1.000",
        "200",
        "800",
        "0",
        "dense",
    ]
    total = [f"{found.density:.3f}", str(row.weights + 200), str(found.stored_bytes)]
    assert lines[3].split() == ["total", *total, str(row.index_bytes)]
    assert len({len(line) for line in lines[:3]}) == 1


@pytest.mark.parametrize(
    ("order", "expected"),
    [("rows", "triton"), ("contiguous", "triton, copied from NCHW"), ("channels_last", "triton")],
)
def test_report_says_what_a_layer_ran_on(order, expected, triton_backend):
    layer = SparseConv2d(16, 16, 2, density=0.5, block=(16, 16))
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(16, 4))
    assert report(model).rows[0].runs_on == "-"
    model(in_order(torch.randn(3, 16, 2, 2), order))
    assert [row.runs_on for row in report(model).rows] == [expected, "dense"]
    assert expected in str(report(model)).splitlines()[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_report_counts_exactly_in_low_precision(dtype):
    model = nn.Sequential(nn.Linear(333, 300))
    wanted = sparsify(model, 0.1, block=(8, 8)).rows[0]
    found = report(model.to(dtype)).rows[0]
    assert found.weights == wanted.weights > 65504
    values = wanted.stored_bytes - wanted.index_bytes
    assert (found.stored_bytes - found.index_bytes) * 2 == values


def test_lists_of_single_weights_take_eight_bytes_each():
    """Every tensor that a layer holds but its weight and bias is counted."""
    layer = SparseLinear(64, 48, density=0.2, block=(1, 1))
    lists = [*layer.layout.tensors(), *layer.buffers()]
    assert layer.index_bytes == sum(t.untyped_storage().nbytes() for t in lists)
    (row,) = report(nn.Sequential(layer)).rows
    assert row.index_bytes == layer.index_bytes == 8 * layer.layout.slots + layer.block_check.nbytes
    assert f"bytes={row.stored_bytes}" in repr(layer)


def test_experts_in_one_parameter_are_named():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.ones(4, 32, 16))

    model = nn.ModuleDict({"experts": Experts(), "router": nn.Linear(16, 4)})
    found = sparsify(model, 0.5, block=(4, 4))
    assert found.experts == ("experts.up",)
    assert str(found).splitlines()[-1].startswith("experts.up: the weights of several experts in")
