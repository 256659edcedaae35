"""Contenders take turns; the clock is read between phases; warm-up rounds are left out."""

import itertools

import pytest

from bench.timing import Clock, in_turn, milliseconds, quantile, ratios


def test_contenders_take_turns_and_phases_add_up():
    ticks, order = itertools.count(), []
    clock = Clock(lambda: float(next(ticks)), lambda a, b: b - a, lambda: None)

    def phase(name):
        return lambda: order.append(name)

    contenders = {
        "a": {"forward": phase("a1"), "backward": phase("a2")},
        "b": {"step": phase("b")},
    }
    times = in_turn(contenders, 3, clock, warm_up=1)
    assert order == ["a1", "a2", "b"] * 4
    assert times["a"] == {"step": [2.0] * 3, "forward": [1.0] * 3, "backward": [1.0] * 3}
    assert times["b"] == {"step": [1.0] * 3}


def test_quantiles_are_interpolated():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 1.0], 0.2) == pytest.approx(0.2)
    assert quantile([5.0], 0.8) == 5.0
    found = milliseconds([1.0, 2.0, 3.0])
    assert found == pytest.approx({"n": 3, "p20_ms": 1400, "p50_ms": 2000, "p80_ms": 2600})


def test_ratios_are_of_the_same_round():
    assert ratios([1.0, 4.0], [2.0, 8.0]) == {"ratio_p20": 0.5, "ratio_p80": 0.5}
