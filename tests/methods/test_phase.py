"""A run split into phases, and how often a phase updates its topology."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from method_phases import phases_for

from sparse_engine.errors import InputError
from sparse_engine.methods.phase import (
    LEAST_UPDATES,
    SHORTEST_INTERVAL,
    automatic_interval,
    split_steps,
)


@given(st.integers(1, 10**7), st.lists(st.integers(1, 300), min_size=1, max_size=9))
def test_split_steps_sums_and_keeps_proportions(total, weights):
    shares = [total * weight / sum(weights) for weight in weights]
    assume(min(shares) >= 2)
    steps = split_steps(total, weights)
    assert sum(steps) == total
    assert all(abs(found - share) <= 1 for found, share in zip(steps, shares))


def test_a_phase_without_steps_is_an_error():
    assert split_steps(3, [1, 1, 1]) == [1, 1, 1]
    with pytest.raises(InputError, match="2 steps are too few for 3 phases"):
        split_steps(2, [1, 1, 1])
    with pytest.raises(InputError, match="too few for 4 phases"):
        phases_for(3, method="edst")


@given(st.floats(0, 10**6), st.floats(0, 10**6))
def test_automatic_interval_limits(scaled, shortest_phase):
    interval = automatic_interval(scaled, shortest_phase)
    assert interval >= 1
    assert interval <= max(SHORTEST_INTERVAL, round(scaled))
    if shortest_phase >= LEAST_UPDATES + 1:
        assert interval * (LEAST_UPDATES + 1) <= shortest_phase


def test_automatic_interval_by_hand():
    assert automatic_interval(1000, 50_000) == 1000
    assert automatic_interval(10, 1000) == SHORTEST_INTERVAL
    assert automatic_interval(10, 60) == 12
    assert automatic_interval(10, 3) == 1
