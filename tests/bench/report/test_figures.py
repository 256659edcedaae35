"""Figures show every row, and where a speed-up passes 1."""

import math

import pytest
from report_rows import DENSE, SPARSE

from bench.report import figures
from bench.report.figures import break_even


@pytest.fixture
def drawn(monkeypatch):
    """The axes of each figure that is drawn, by its file."""
    found, save = {}, figures.save_figure

    def saved(path, draw, *arguments, **options):
        save(path, lambda axes: draw(found.setdefault(path.name, axes)), *arguments, **options)

    monkeypatch.setattr(figures, "save_figure", saved)
    return found


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_figures_show_every_row(tmp_path, drawn):
    memory = {**SPARSE, "peak_mb": "50"}
    slow = {**SPARSE, "density": "0.5", "p50_ms": "1600", "sparsity": "0.5"}
    wide = {**SPARSE, "subject": "wrn28-10", "contender": "slim"}
    parts = [{**SPARSE, "phase": p, "p50_ms": "100"} for p in ("forward", "topology update")]
    paths = figures.draw_all([DENSE, memory, slow, wide, *parts], tmp_path, "cpu")
    assert [path.name for path in paths] == [*drawn]
    assert all(path.is_file() for path in paths)
    assert set(drawn) == {"cpu-speedup.png", "cpu-breakdown.png", "cpu-memory.png"}
    narrow, other = drawn["cpu-speedup.png"]
    assert narrow.get_title() == "wrn16-8, batch 32"
    line, crossing, even = narrow.lines
    assert line.get_label() == "64x64 blocks"
    assert ([*line.get_xdata()], [*line.get_ydata()]) == ([0.2, 0.5], [2.5, 0.625])
    assert ticks(narrow.xaxis) == ["0.2", "0.5"]
    assert 0.2 < crossing.get_xdata()[0] < 0.5
    assert [*even.get_ydata()] == [1, 1]
    assert other.lines[0].get_label() == "narrower dense network"
    bars, _ = drawn["cpu-breakdown.png"]
    names = ["dense", "sparsity 0.8, 64x64 blocks", "sparsity 0.5, 64x64 blocks"]
    assert ticks(bars.yaxis) == names
    # Two phases of the step that has any, whole steps of the two that have none.
    widths = {tuple(bar.get_width() for bar in group) for group in bars.containers}
    assert widths == {(0, 0, 0), (0, 100, 0), (1000, 0, 1600)}
    peak, _ = drawn["cpu-memory.png"][0].containers
    assert [bar.get_width() for bar in peak] == [0, 50, 0]


def test_break_even_lies_between_its_neighbours():
    points = [(0.1, 4.0), (0.2, 2.0), (0.8, 0.5)]
    assert break_even(points) == pytest.approx(0.4)
    assert math.isclose(break_even([(0.1, 1.0), (0.2, 0.5)]), 0.1)
    assert break_even(points[:2]) is None
    assert break_even([]) is None
