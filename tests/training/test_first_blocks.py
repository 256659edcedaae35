"""What is left of the blocks that layers began with, by counting sets of ids."""

from pathlib import Path

import pytest
import torch
from resumed_runs import block_rows_of, rows_of, train, train_and_kill
from topologies import network

from sparse_engine import SparseConv2d, SparseLinear
from sparse_engine.errors import InputError
from sparse_engine.runs.epoch_rows import BLOCK_COLUMNS, whole_rows
from sparse_engine.runs.files import load_file, save_file
from sparse_engine.sparsity.topology import Topology
from sparse_engine.train import main
from sparse_engine.training.first_blocks import FirstBlocks
from sparse_kernels import BlockLayout

ENSEMBLE = ["--method", "dst-ensemble", "--epochs", "6"]  # three members of two epochs


def active(layer):
    return {*layer.layout.block_ids.tolist()} - {layer.layout.total}


def test_shares_are_those_of_sets():
    topology = Topology(network(), None, "set")
    first = {name: active(layer) for name, layer in topology.layers.items()}
    ever, blocks = {name: set(ids) for name, ids in first.items()}, FirstBlocks()
    assert not list(blocks.rows(0, topology))
    blocks.watch(topology.layers)
    for step in range(1, 4):
        with torch.no_grad():
            topology.update(0.5)
        blocks.watch(topology.layers)  # which knows these layers already
        rows = list(blocks.rows(step, topology))
        assert [row.layer for row in rows] == list(first)
        for row, layer in zip(rows, topology.layers.values()):
            began, now = first[row.layer], active(layer)
            ever[row.layer] |= now
            assert (row.step, row.density) == (step, layer.density)
            assert row.kept == pytest.approx(len(began & now) / len(began))
            assert row.explored == pytest.approx(len(ever[row.layer]) / layer.layout.total)
            norms = sorted(v.abs().sum().item() for v in layer.values[: layer.layout.active])
            weaker = sum(norms[: len(norms) // 2]) / sum(norms)
            assert row.weaker_half == pytest.approx(weaker)
    assert min(row.kept for row in rows) < 0.8
    blocks.begin()
    blocks.watch(topology.layers)
    assert {row.kept for row in blocks.rows(4, topology)} == {1.0}


def row_of(layer):
    blocks, topology = FirstBlocks(), Topology(layer, None, "static")
    blocks.watch(topology.layers)
    [row] = blocks.rows(0, topology)
    return row


def weaker_half(layer):
    return row_of(layer).weaker_half


@pytest.mark.parametrize("taps", ["row", "all"])
def test_the_weaker_half_is_of_what_updates_move(taps):
    layer = SparseConv2d(16, 16, 3, density=0.5, block=(8, 8), taps=taps)
    group, count = layer.layout.group, layer.layout.active // layer.layout.group
    with torch.no_grad():
        layer.values.zero_()
        assert weaker_half(layer) is None
        for slot in range(0, layer.layout.active, group):
            layer.values[slot].fill_(slot // group)  # 0, 1, 2 ... by group, in one of its taps
    half = sum(range(count // 2)) / sum(range(count))
    assert weaker_half(layer) == pytest.approx(half)


def test_one_block_has_no_half():
    layer = SparseLinear(8, 8, density=1.0, block=(8, 8), bias=False)
    assert weaker_half(layer) is None


@pytest.mark.parametrize(("ids", "empty"), [([0, 1], 24 / 40), ([4, 5], 32 / 40), ([0, 2, 4], 0)])
def test_empty_outputs_are_channels_without_a_block(ids, empty):
    """40 outputs in blocks of 16: two whole rows of two blocks, and one of 8 channels."""
    layout = BlockLayout((40, 32), (16, 16), torch.tensor(ids))
    layer = SparseLinear(32, 40, bias=False, layout=layout)
    assert row_of(layer).empty_outputs == pytest.approx(empty)
    assert row_of(layer).empty_outputs == pytest.approx((layer.weight == 0).all(1).float().mean())


@pytest.mark.parametrize("columns", [5, 6])
def test_a_resumed_run_of_an_earlier_version_has_all_columns_from_then_on(
    own_folder, monkeypatch, columns
):
    train_and_kill(monkeypatch, 3, *ENSEMBLE)
    path = Path("out/blocks.csv")
    earlier = [",".join(line.split(",")[:columns]) for line in path.read_text().splitlines()]
    path.write_text("\n".join(earlier) + "\n")
    main(["--resume", "out"])
    rows = whole_rows(path, BLOCK_COLUMNS)
    before, after = rows[: len(earlier) - 1], rows[len(earlier) - 1 :]
    assert before
    for name in BLOCK_COLUMNS[columns:]:
        assert {row[name] for row in before} == {""}
        assert all(0 <= float(row[name]) <= 0.5 for row in after)


def test_other_columns_are_damage(tmp_path):
    path = tmp_path / "blocks.csv"
    path.write_text("epoch,step\n1,2\n")
    with pytest.raises(InputError, match="damaged"):
        whole_rows(path, BLOCK_COLUMNS)


def test_a_checkpoint_of_an_earlier_version_tells_of_the_members_that_follow(
    own_folder, monkeypatch
):
    train("whole", *ENSEMBLE)
    train_and_kill(monkeypatch, 3, *ENSEMBLE)
    state = load_file(Path("out/last.pt"))
    del state["first_blocks"]
    save_file({name: part for name, part in state.items() if name != "format"}, Path("out/last.pt"))
    main(["--resume", "out"])
    assert rows_of("out") == rows_of("whole")
    lines = block_rows_of("whole").splitlines()
    # The fourth epoch, with which the second member ends, is not told of.
    assert block_rows_of("out").splitlines() == [n for n in lines if not n.startswith("20,")]
