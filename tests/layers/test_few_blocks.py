"""Outputs that have no block wherever blocks lie, by hand and by layers that are made."""

import pytest
from torch import nn

from sparse_engine import SparseConv2d, sparsify
from sparse_engine.layers.few_blocks import few_blocks_note, fewest_empty_outputs
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.train import main as train


def plan(active, taps="each", shape=(64, 32, 3, 3), name="conv"):
    """Return the plan of a layer with so many groups of blocks of 16x16."""
    full = LayerPlan.full(name, shape, (16, 16), taps)
    return full.at(active * full.group / full.total)


@pytest.mark.parametrize("taps", ["each", "row", "all"])
@pytest.mark.parametrize("active", range(1, 6))
@pytest.mark.parametrize("outputs", [64, 56])
def test_first_blocks_leave_no_more_outputs_empty(active, taps, outputs):
    planned = plan(active, taps, (outputs, 32, 3, 3))
    density = planned.active / planned.total
    layer = SparseConv2d(32, outputs, 3, density=density, block=planned.block, taps=taps)
    fed = layer.layout.mask().flatten(1).any(1)
    channels = fed.repeat_interleave(planned.block[0])[:outputs]
    empty = int((~channels).sum())
    assert empty >= fewest_empty_outputs(planned)
    if outputs == 64:  # the rows are of one size
        assert empty == fewest_empty_outputs(planned)


def test_a_line_names_the_worst_layer():
    found = few_blocks_note([plan(3, name="a"), plan(1, name="b"), plan(30, name="c")])
    assert found == (
        "at least 64 of 192 outputs of sparse layers are constants, for there are too few blocks "
        "(b: 48 of 64): use smaller blocks or a lower sparsity"
    )


@pytest.mark.parametrize("taps", ["row", "all"])
def test_taps_by_themselves_are_proposed_where_they_are_not(taps):
    assert "use taps each by itself, smaller blocks" in few_blocks_note([plan(2, taps)])


def test_a_single_small_layer_is_not_worth_a_line():
    small, large = plan(1, shape=(32, 32, 1, 1)), plan(40, shape=(160, 160, 3, 3))
    assert few_blocks_note([small, large]) is None
    assert few_blocks_note([small]) is not None


def test_networks_without_sparse_layers():
    assert few_blocks_note([]) is None
    assert few_blocks_note([LayerPlan.full("conv", (64, 32, 3, 3), (16, 16))]) is None


def test_a_run_says_so_and_a_dry_run_too(own_folder, capsys):
    flags = ["--model", "mlp", "--method", "static", "--sparsity", "0.8", "--block", "32x32"]
    flags += ["--epochs", "1", "--device", "cpu", "--workers", "0", "--no-compare"]
    train([*flags, "--dry-run"])
    told = capsys.readouterr().err
    train(flags)
    assert told.startswith("warning: at least ")
    assert told in capsys.readouterr().err


def test_a_report_says_so():
    model = nn.Sequential(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    assert "constants" not in str(sparsify(model, 0.6, "uniform", (16, 16), skip=()))
    model = nn.Sequential(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    found = sparsify(model, 0.6, "uniform", (32, 32), taps="all", skip=())
    assert str(found).splitlines()[-1] == few_blocks_note(found.rows) is not None
