"""Shapes of the learning rate."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_engine.methods.learning_rate import Cosine, LearningRate, Linear, Segment


def test_learning_rate_milestones():
    rate = LearningRate(((0.0, 1.0), (0.5, 0.1), (0.75, 0.01)))
    assert [rate.at(step, 8) for step in range(8)] == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert LearningRate().at(999, 1000) == 1


@given(st.integers(1, 10_000))
def test_milestones_fall_on_the_exact_step(tenths):
    rate = LearningRate(((0.0, 1.0), (0.3, 0.5), (0.7, 0.1)))
    steps = 10 * tenths
    edges = (0, 3 * tenths - 1, 3 * tenths, 7 * tenths - 1, 7 * tenths, steps - 1)
    assert [rate.at(step, steps) for step in edges] == [1, 1, 0.5, 0.5, 0.1, 0.1]


def test_warm_up_rises_to_the_full_rate():
    rate = LearningRate(((0.0, 1.0), (0.5, 0.1)), warmup=0.2)
    rates = [rate.at(step, 20) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:10] == [1.0] * 6
    assert rates[10:] == [0.1] * 10


def test_a_triangle_rises_and_falls_in_straight_lines():
    rate = Linear(((0.0, 0.1), (0.5, 0.5), (1.0, 0.1)))
    assert [rate.at(step, 5) for step in range(5)] == pytest.approx([0.1, 0.3, 0.5, 0.3, 0.1])
    assert rate.at(0, 1) == 0.1


def test_a_cosine_falls_from_high_to_low():
    rate = Cosine(1.0, 0.2)
    assert [rate.at(step, 4) for step in (0, 2, 4)] == pytest.approx([1.0, 0.6, 0.2])
    assert rate.at(1, 4) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))


@pytest.mark.parametrize("shape", [LearningRate(((0.0, 1.0), (0.4, 0.1)), 0.2), Cosine()])
@pytest.mark.parametrize("first_length", [1, 3, 7])
def test_segments_are_the_schedule_of_the_whole(shape, first_length):
    whole = [shape.at(step, 10) for step in range(10)]
    first, second = Segment(shape, 0, 10), Segment(shape, first_length, 10)
    rest = 10 - first_length
    parts = [first.at(n, first_length) for n in range(first_length)]
    parts += [second.at(n, rest) for n in range(rest)]
    assert parts == whole
