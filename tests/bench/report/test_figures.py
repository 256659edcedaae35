"""Figures show every row, and where a speed-up passes 1."""

import math

import pytest
from report_rows import DENSE, SPARSE

from bench.report import figures
from bench.report.figures import break_even


class Axes:
    """Records what is drawn, in place of matplotlib's; what our figures do not use is missing."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        known = "plot", "barh", "axvline", "axhline", "set", "legend", "invert_yaxis", "tick_params"
        if name not in known:
            raise AttributeError(name)

        def call(*values, **options):
            self.calls.append((name, tuple(map(_frozen, values))))
            return [self]

        return call

    def get_color(self):
        return "blue"

    def called(self, wanted):
        return [values for name, values in self.calls if name == wanted]


def _frozen(value):
    return tuple(value) if isinstance(value, list | tuple) else value


def test_figures_show_every_row(tmp_path, monkeypatch):
    drawn: dict[str, Axes] = {}

    def save(draw, bars, path):
        draw(drawn.setdefault(path.name, Axes()))
        return path

    monkeypatch.setattr(figures, "_save", save)
    memory = {**SPARSE, "peak_mb": "50"}
    slow = {**SPARSE, "density": "0.5", "p50_ms": "1600", "sparsity": "0.5"}
    parts = [{**SPARSE, "phase": p, "p50_ms": "100"} for p in ("forward", "topology update")]
    figures.draw_all([DENSE, memory, slow, *parts], tmp_path, "cpu")
    assert set(drawn) == {"cpu-speedup.png", "cpu-breakdown.png", "cpu-memory.png"}
    (line,) = drawn["cpu-speedup.png"].called("plot")
    assert line == ((0.2, 0.5), (2.5, 0.625))
    ((density,),) = drawn["cpu-speedup.png"].called("axvline")
    assert 0.2 < density < 0.5
    bars = {widths for _, widths in drawn["cpu-breakdown.png"].called("barh")}
    # Two phases of the step that has any, whole steps of the two that have none.
    assert bars == {(0, 0, 0), (0, 100, 0), (1000, 0, 1600)}
    (peak, _) = drawn["cpu-memory.png"].called("barh")
    assert peak[1] == (0.0, 50.0, 0.0)


def test_break_even_lies_between_its_neighbours():
    points = [(0.1, 4.0), (0.2, 2.0), (0.8, 0.5)]
    assert break_even(points) == pytest.approx(0.4)
    assert math.isclose(break_even([(0.1, 1.0), (0.2, 0.5)]), 0.1)
    assert break_even(points[:2]) is None
    assert break_even([]) is None
