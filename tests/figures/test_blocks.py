"""The figure of a layer's blocks: what is active, where, and what it is called."""

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from sparse_engine import SparseConv2d, SparseLinear, draw_blocks
from sparse_engine.errors import InputError


def fields(axes):
    return torch.tensor(axes.images[0].get_array().astype(int))


def numbers(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_taps_lie_in_each_pair_as_in_the_kernel():
    layer = SparseConv2d(32, 48, (2, 3), density=0.4, block=(16, 16))
    axes = Figure(figsize=(6, 4)).subplots()
    draw_blocks(layer, axes)
    mask, image = layer.block_mask(), fields(axes)
    # Pair (1, 0) lies below (0, 0), as high as a kernel.
    assert image[2:4, 0:3].bool().equal(mask[1, 0])
    assert image.sum() == layer.layout.active
    assert axes.images[0].get_extent() == [0, 2, 3, 0]
    assert (numbers(axes.xaxis), numbers(axes.yaxis)) == (["0", "1"], ["0", "1", "2"])
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2", "tap", "0", "1"]
    words = "density 0.3889: 14 of 36 blocks active\neach pair has 2 x 3 taps, as in the kernel"
    assert axes.get_title() == words
    # Lines between taps, and between pairs: across and down.
    assert [len(lines.get_segments()) for lines in axes.collections] == [7, 7, 3, 4]


def test_a_wide_layer_has_no_lines_and_few_numbers(tmp_path):
    layer, axes = SparseLinear(1024, 2048, density=0.5, block=(4, 4)), Figure().subplots()
    draw_blocks(layer, axes)
    assert fields(axes).bool().equal(layer.block_mask())
    assert not axes.collections
    assert numbers(axes.xaxis) == [str(50 * number) for number in range(6)]
    assert axes.get_ylabel() == "output block, of 4 channels"
    draw_blocks(layer, tmp_path / "blocks.png")
    assert (tmp_path / "blocks.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"blocks.qqq' cannot be drawn: Format 'qqq' is not supp"):
        draw_blocks(SparseLinear(32, 48), tmp_path / "blocks.qqq")
    with pytest.raises(InputError, match="a Linear has no blocks to draw"):
        draw_blocks(nn.Linear(4, 4), tmp_path / "blocks.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="draw_blocks needs matplotlib, which is not installed"):
        draw_blocks(SparseLinear(32, 48), tmp_path / "blocks.png")
    assert not list(tmp_path.iterdir())
