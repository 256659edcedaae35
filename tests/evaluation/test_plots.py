"""Figures show what the evaluation found: a stand-in for matplotlib records what is drawn."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sparse_engine import SparseConv2d, SparseLinear, draw_blocks, evaluate, train
from sparse_engine.errors import InputError
from sparse_engine.evaluation.plots import training_curves
from sparse_engine.runs.epoch_rows import COLUMNS

FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
DRAWN: dict[str, list] = {}


class Axes:
    """Records calls by name; those that our figures do not use are missing, so an error."""

    def __init__(self, figure):
        self.figure, self.calls = figure, []

    def __getattr__(self, name):
        if name not in ("plot", "bar", "imshow", "set", "legend"):
            raise AttributeError(name)
        return lambda *values, **options: self.calls.append((name, values, options))

    def called(self, wanted):
        return [(values, options) for name, values, options in self.calls if name == wanted]

    def setting(self, name):
        return next(o[name] for _, o in self.called("set") if name in o)


class Figure:
    """The calls of matplotlib.figure.Figure that our figures use."""

    def __init__(self, *, figsize, layout):
        assert layout == "constrained"
        self.bars = 0

    def subplots(self, rows, columns, *, squeeze):
        assert (rows, squeeze) == (1, False)
        self.axes = [Axes(self) for _ in range(columns)]
        return [self.axes]

    def colorbar(self, image, *, ax):
        self.bars += 1

    def savefig(self, path, *, dpi):
        DRAWN[Path(path).stem] = self.axes
        Path(path).write_bytes(b"PNG")


@pytest.fixture
def matplotlib(draw_with):
    """Draw with the stand-in."""
    DRAWN.clear()
    draw_with(Figure)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, flags in {
        "edst": ["--method", "edst", "--members", "2", "--epochs", "6", "--sparsity", "0.5"],
        "dense": ["--method", "dense", "--epochs", "2"],
    }.items():
        train.main([*FLAGS, *flags, "--out", str(folder / name)])
    return folder


@pytest.fixture
def drawn(runs, matplotlib, monkeypatch, tmp_path, capsys):
    """Evaluate runs with figures: the JSON object and the axes of each figure."""
    monkeypatch.chdir(runs)

    def call(*names):
        folder = tmp_path / "figures"
        evaluate.main([*names, "--device", "cpu", "--plots", str(folder)])
        assert {path.name for path in folder.iterdir()} == {f"{name}.png" for name in DRAWN}
        return json.loads(capsys.readouterr().out.splitlines()[-1]), DRAWN

    return call


def test_five_figures_of_an_ensemble(drawn):
    found, figures = drawn("edst", "dense")
    assert set(figures) == {"reliability", "members", "disagreement", "density", "training"}
    accuracy, nll = figures["members"]
    assert accuracy.called("plot")[0][0] == (
        [1, 2, 3],
        [m["accuracy"] for m in found["growing"]],
    )
    assert nll.called("plot")[0][0][1][-1] == found["nll"]
    (matrix,) = figures["disagreement"]
    assert matrix.called("imshow")[0][0] == (found["disagreement_matrix"],)
    assert matrix.figure.bars == 1


def test_the_diagram_leaves_empty_bins_out(drawn):
    found, figures = drawn("edst")
    (axes,) = figures["reliability"]
    ((places, heights), _), *_ = axes.called("bar")
    filled = [i for i, count in enumerate(found["calibration"]["counts"]) if count]
    assert places == [found["calibration"]["confidence"][i] for i in filled]
    assert heights == [found["calibration"]["accuracy"][i] for i in filled]
    assert axes.setting("title") == f"ECE {found['ece']:.4f}"


def test_densities_of_sparse_and_dense_tickets(drawn):
    _, figures = drawn("edst", "dense")
    (axes,) = figures["density"]
    lines = [values[0] for values, _ in axes.called("plot")]
    assert [len(line) for line in lines] == [3, 3, 3]
    assert 0.3 < sum(lines[0]) / 3 < 0.9
    assert lines[2] == [1, 1, 1]


def test_training_curves_are_those_of_the_runs(drawn, runs):
    _, figures = drawn("edst", "dense")
    loss, accuracy = figures["training"]
    assert [options["label"] for _, options in loss.called("plot")] == ["edst", "dense"]
    steps, values = accuracy.called("plot")[1][0]
    assert steps == [5, 10]
    last = (runs / "dense" / "metrics.csv").read_text().splitlines()[-1]
    assert f"{values[-1]:.6f}" in last


def test_a_single_ticket_without_curves_has_two_figures(drawn, runs):
    (runs / "dense" / "metrics.csv").rename(runs / "kept.csv")
    _, figures = drawn("dense")
    (runs / "kept.csv").rename(runs / "dense" / "metrics.csv")
    assert set(figures) == {"reliability", "density"}


def test_curves_of_a_damaged_file(tmp_path):
    header = ",".join(COLUMNS)
    for text in ("epoch\n1\n", f"{header}\n1,5,dense,0.1,x,test,1,1,1,1\n"):
        (tmp_path / "metrics.csv").write_text(text)
        with pytest.raises(InputError, match="is damaged; move it away to draw the rest"):
            training_curves([str(tmp_path)])


def test_the_blocks_of_a_layer(matplotlib, tmp_path):
    layer = SparseConv2d(32, 48, (2, 3), density=0.4, block=(16, 16))
    draw_blocks(layer, tmp_path / "blocks.png")
    assert (tmp_path / "blocks.png").is_file()
    (axes,) = DRAWN["blocks"]
    ((image,), options), *_ = axes.called("imshow")
    mask = layer.block_mask()
    # Pair (1, 0) lies below (0, 0), as high as a kernel; its taps lie as in the kernel.
    assert torch.tensor(image)[2:4, 0:3].bool().equal(mask[1, 0])
    assert torch.tensor(image).sum() == layer.layout.active
    assert options["extent"] == (0, 2, 3, 0)
    assert axes.setting("title") == "density 0.3889"


def test_blocks_are_drawn_on_axes_of_ones_own():
    layer, axes = SparseLinear(32, 48, density=0.5, block=(16, 16)), Axes(None)
    draw_blocks(layer, axes)
    assert axes.called("imshow")[0][0][0] == layer.block_mask().int().tolist()
    assert axes.setting("ylabel") == "output block (16 channels)"


def test_a_file_that_cannot_be_drawn(monkeypatch):
    def refuse(*_):
        raise ValueError("Format 'qqq' is not supported")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("sparse_engine.evaluation.plots._save", refuse)
    with pytest.raises(InputError, match=r"^'blocks.qqq' cannot be drawn: Format 'qqq' is not sup"):
        draw_blocks(SparseLinear(32, 48), "blocks.qqq")


def test_what_has_no_blocks_is_not_drawn(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="a Linear has no blocks to draw"):
        draw_blocks(nn.Linear(4, 4), tmp_path / "blocks.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="draw_blocks needs matplotlib, which is not"):
        draw_blocks(SparseLinear(32, 48), tmp_path / "blocks.png")
    assert not list(tmp_path.iterdir())
