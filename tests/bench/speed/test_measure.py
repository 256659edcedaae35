"""The energy of a step by a simulated counter, which moves ten times a second."""

import math
import time

import pytest

from bench.speed import measure
from bench.speed.timing import STEP, Clock

WATTS, TICK, STEP_SECONDS = 500.0, 0.1, 0.007


@pytest.fixture
def passed(monkeypatch) -> list[float]:
    """Let a step take 7 ms of a simulated time, and return how many seconds have passed."""
    passed = [0.0]
    clock = Clock(lambda: passed[0], lambda a, b: b - a, lambda: None)
    monkeypatch.setattr(measure, "clock_of", lambda *_: clock)
    monkeypatch.setattr(time, "perf_counter", lambda: passed[0])
    return passed


def steps(passed: list[float]) -> dict:
    def step() -> None:
        passed[0] += STEP_SECONDS

    return {"dense": {STEP: step}}


def test_joules_of_a_step_are_right_within_a_move_of_the_counter(passed, monkeypatch):
    counter = lambda: WATTS * TICK * math.floor(passed[0] / TICK)  # noqa: E731
    monkeypatch.setattr(measure, "joules", counter)
    for start in (0.001, 0.03, 0.06, 0.099):
        passed[0] = start
        times, joules = measure.measure(steps(passed), "cuda", 0)
        assert joules == pytest.approx(WATTS * STEP_SECONDS, rel=0.05)
        assert len(times["dense"][STEP]) == measure.ROUNDS[1]


@pytest.mark.parametrize("counted", [None, 7.0])
def test_without_a_counter_that_moves_nothing_is_repeated_or_said(counted, passed, monkeypatch):
    monkeypatch.setattr(measure, "joules", lambda: counted)
    _, joules = measure.measure(steps(passed), "cuda", 0)
    assert joules is None
    assert (passed[0] < measure.ENERGY_SECONDS / 2) == (counted is None)


def test_variants_that_take_turns_have_no_energy_of_their_own(passed, monkeypatch):
    monkeypatch.setattr(measure, "joules", lambda: passed[0])
    both = {**steps(passed), "sparse": {STEP: lambda: None}}
    assert measure.measure(both, "cuda", 0)[1] is None
