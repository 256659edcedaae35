"""The figure of a study shows every timed point and the front; its labels lie on nothing."""

import importlib.util
import itertools

from matplotlib.figure import Figure

from bench.study.figure import draw, draw_places, pareto


def test_the_front_keeps_what_nothing_beats():
    places = [(1.0, 90.0), (0.5, 85.0), (0.5, 80.0), (0.7, 84.0), (0.2, 60.0), (1.2, 90.0)]
    assert pareto(places) == [(0.2, 60.0), (0.5, 85.0), (1.0, 90.0)]


def test_every_timed_point_is_drawn_and_the_front(tmp_path, monkeypatch):
    places = {
        "blocks": [("8x8", (0.5, 80.0)), ("16x16", (0.4, 85.0))],
        "dense": [("", (1.0, 90.0)), ("again", (0.4, 85.0))],
        "shared": [("again", (0.5, 80.0))],
    }
    assert draw("tiny", places, tmp_path / "some.png")
    assert not draw("tiny", {}, tmp_path / "none.png")
    axes = Figure(figsize=(9, 7), layout="constrained").subplots()
    draw_places(axes, "tiny", places)
    points = [[tuple(place) for place in dots.get_offsets()] for dots in axes.collections]
    assert points == [[(0.5, 80), (0.4, 85)], [(1, 90)]]
    assert [*zip(*axes.lines[0].get_data())] == [(0.4, 85), (1, 90)]
    assert {text.get_text() for text in axes.texts} == {"8x8", "16x16", "dense"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not draw("tiny", places, tmp_path / "none.png")
    assert [path.name for path in tmp_path.iterdir()] == ["some.png"]


def test_labels_of_a_crowd_do_not_lie_on_each_other():
    crowd = [(f"a way of some length {n}", (0.5 + n / 400, 80 + n / 7)) for n in range(20)]
    axes = Figure(figsize=(9, 7), layout="constrained").subplots()
    draw_places(axes, "crowd", {"ways": crowd, "far": [("far", (1.0, 70.0))]})
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 3 < len(boxes) < 21
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
