"""Figures show what an evaluation found, and how its runs were trained."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sparse_engine import evaluate, train
from sparse_engine.errors import InputError
from sparse_engine.evaluation import plots
from sparse_engine.evaluation.robustness.options import Options
from sparse_engine.evaluation.training_plots import draw_training, told_runs
from sparse_engine.runs.epoch_rows import BLOCK_COLUMNS, COLUMNS, whole_rows

FLAGS = ["--model", "mlp", "--block", "8x8", "--distribution", "erk", "--device", "cpu"]
FLAGS += ["--batch-size", "256"]
RUNS = {
    "edst": ["--method", "edst", "--members", "2", "--epochs", "6", "--sparsity", "0.5"],
    "dense": ["--method", "dense", "--epochs", "2"],
}
LAYERS = ["hidden1", "hidden2", "classifier"]
OF_ONE_MEMBER = {"reliability", "density", "training"}
OF_SEVERAL = {*OF_ONE_MEMBER, "members", "disagreement", "blocks"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, flags in RUNS.items():
        train.main([*FLAGS, *flags, "--out", str(folder / name)])
    return folder


def watched(monkeypatch):
    """Return the axes of each figure that is drawn from now on, by its name."""
    found, save = {}, plots.save_figure

    def saved(path, draw, *arguments, **options):
        save(path, lambda axes: draw(found.setdefault(path.stem, axes)), *arguments, **options)

    monkeypatch.setattr(plots, "save_figure", saved)
    return found


@pytest.fixture
def drawn(monkeypatch):
    """The axes of each figure that is drawn, by its name."""
    return watched(monkeypatch)


@pytest.fixture(scope="module")
def both(runs):
    """EDST and a dense network, evaluated with figures: the JSON object and the axes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        figures = watched(patch)
        flags = ["--device", "cpu", "--out", "both.json", "--plots", "figures"]
        evaluate.main(["edst", "dense", *flags])
    assert {path.stem for path in (runs / "figures").glob("*.png")} == set(figures) == OF_SEVERAL
    return json.loads((runs / "both.json").read_text()), figures


def texts(axes):
    return [text.get_text() for text in axes.texts]


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_figures_of_several_members_and_a_dense_network(both):
    found, figures = both
    upper, lower = figures["reliability"]
    filled = [i for i, count in enumerate(found["calibration"]["counts"]) if count]
    heights = [bar.get_height() for bar in upper.patches]
    accuracy, confidence = (found["calibration"][name] for name in ("accuracy", "confidence"))
    gaps = [confidence[i] - accuracy[i] for i in filled]
    assert heights == pytest.approx([*(accuracy[i] for i in filled), *gaps])
    assert sum(map(int, texts(lower))) == found["test_images"]
    assert upper.get_title() == f"ECE {found['ece']:.4f}, 360 images"

    accuracy, nll = figures["members"]
    assert (accuracy.get_ylabel(), nll.get_ylabel()) == ("accuracy", "NLL")
    mean, dense = nll.lines
    assert [*mean.get_xdata()] == [1, 2]
    assert mean.get_ydata()[0] == pytest.approx(sum(m["nll"] for m in found["members"][:2]) / 2)
    assert dense.get_ydata()[0] == found["members"][2]["nll"]
    assert len(accuracy.collections) == 1

    (matrix,) = figures["disagreement"]
    first, second, third = found["disagreement_matrix"]
    pairs = [first[1], first[2], second[0], second[2], third[0], third[1]]
    assert texts(matrix) == [f"{value:.3f}" for value in pairs]
    names = ["member 1, edst", "member 2, edst", "member 3, dense"]
    assert (ticks(matrix.yaxis), ticks(matrix.xaxis)) == (names, ["1", "2", "3"])

    (bars,) = figures["density"]
    assert ticks(bars.yaxis) == LAYERS
    assert [group.get_label() for group in bars.containers] == names
    densities = [[bar.get_width() for bar in group] for group in bars.containers]
    assert densities[2] == [1, 1, 1]
    assert 0.3 < sum(densities[0]) / 3 < 0.9


def test_curves_have_phases_escapes_and_tickets(both, runs):
    _, figures = both
    loss, accuracy, _, dense = figures["training"]
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("training loss", "test accuracy")
    assert texts(loss) == ["explore", "refine 1", "refine 2"]
    curve, escape, tickets = accuracy.lines
    assert (escape.get_label(), tickets.get_label()) == ("escape", "ticket saved")
    assert [*tickets.get_xdata()] == [21, 30]
    assert [*escape.get_xdata()] == [21, 21]
    last = (runs / "dense/metrics.csv").read_text().splitlines()[-1]
    assert f"{dense.lines[0].get_ydata()[-1]:.6f}" in last
    assert curve.get_xdata()[-1] == 30


def test_accuracy_is_drawn_where_it_is_known(both, runs, tmp_path):
    folder = shutil.copytree(runs / "dense", tmp_path / "dense")
    first, *rows = whole_rows(folder / "metrics.csv")
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows([{**first, "nll": "", "accuracy": ""}, *rows])
    (told,) = told_runs([str(folder)])
    loss, accuracy = Figure().subplots(ncols=2)
    draw_training([loss, accuracy], [told])
    assert [len(axis.lines[0].get_xdata()) for axis in (loss, accuracy)] == [2, 1]


def test_blocks_that_stayed_by_layer(both, runs):
    _, figures = both
    kept, explored = figures["blocks"]
    with (runs / "edst/blocks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert ticks(kept.yaxis) == LAYERS[:2]
    for axes, name in ((kept, "kept"), (explored, "explored")):
        image = axes.collections[0].get_array().reshape(2, -1)
        for layer, shares in zip(LAYERS, image):
            assert [*shares] == [float(row[name]) for row in rows if row["layer"] == layer]


@pytest.mark.parametrize(
    ("run", "missing", "figures"),
    [
        ("edst", (), OF_SEVERAL),
        ("edst", ("blocks.csv",), OF_SEVERAL - {"blocks"}),
        ("dense", (), OF_ONE_MEMBER),
        ("dense", ("metrics.csv",), OF_ONE_MEMBER - {"training"}),
    ],
)
def test_what_there_is_no_data_for_is_not_drawn(run, missing, figures, runs, drawn, tmp_path):
    shutil.copytree(runs / run, copy := tmp_path / run)
    for name in missing:
        (copy / name).unlink()
    result = evaluate.evaluate([str(copy)], None, "cpu", Options(plots=tmp_path))
    plots.draw_all(result, tmp_path / "figures")
    assert set(drawn) == figures
    if run == "edst":  # and no dense network
        assert [len(axes.lines) for axes in drawn["members"]] == [1, 1]


def test_each_network_of_a_run_has_a_curve_and_its_split_is_named(tmp_path, drawn):
    shutil.copy(Path(__file__).parents[1] / "fixtures/f3c2475/edst/config.json", tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings |= {"method": "dst-ensemble", "escape": None}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    rows = [f"{n},{5 * n},member {1 + n // 3},0.1,{n},validation,1,0.5,1,1" for n in range(1, 6)]
    (tmp_path / "metrics.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    (run,) = told_runs([str(tmp_path)])
    assert [stretch.last for stretch in run.stretches] == [10, 25]
    # It has no metrics.json, so it may not have ended.
    assert [stretch.tickets for stretch in run.stretches] == [1, 0]
    plots.save_figure(
        tmp_path / "a.png", lambda axes: plots.draw_training(axes, [run]), (9, 4), (1, 2)
    )
    loss, accuracy = drawn["a"]
    assert [[*line.get_ydata()] for line in loss.lines] == [[1, 2], [3, 4, 5]]
    assert accuracy.get_ylabel() == "validation accuracy"


def test_files_that_are_damaged(tmp_path):
    header, blocks = ",".join(COLUMNS), ",".join(BLOCK_COLUMNS)
    whole = f"{header}\n1,5,dense,0.1,1,test,1,1,1,1\n"
    for metrics, moved in (
        ("epoch\n1\n", ""),
        (whole.replace("0.1,1,test", "0.1,x,test"), ""),
        (whole, f"{blocks}\n5,hidden1,0.5,x,1,0.5,0\n"),
        (whole, "a,b\n1,2\n"),
    ):
        (tmp_path / "metrics.csv").write_text(metrics)
        (tmp_path / "blocks.csv").write_text(moved)
        with pytest.raises(InputError, match="is damaged; move it away"):
            told_runs([str(tmp_path)])
