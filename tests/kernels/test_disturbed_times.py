"""What is said of times that were taken while threads waited for a core."""

from pathlib import Path

import pytest
import torch

from sparse_kernels import timing
from sparse_kernels.timing import CoreWait, disturbance


@pytest.fixture
def waited(monkeypatch):
    """Four threads that are timed for ten seconds, and wait for ten seconds together."""
    seconds = iter((100.0, 110.0))
    clock = iter((50.0, 60.0))
    monkeypatch.setattr(timing, "_seconds_waited", lambda: next(seconds))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)


@pytest.mark.usefixtures("waited")
def test_the_share_is_of_one_thread():
    share = CoreWait().share()
    assert share == 0.25
    said = disturbance(share)
    assert said.startswith("the 4 threads that were timed waited for a core in 25% of their time")


@pytest.mark.usefixtures("waited")
def test_a_clock_that_waits_do_not_move_is_not_disturbed(monkeypatch):
    assert CoreWait(on_gpu=True).share() == 0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert CoreWait().share() == 0


def test_little_is_not_spoken_of():
    assert disturbance(0.0) is None
    assert disturbance(timing.MOST_WAIT) is None


def test_waits_are_those_that_the_system_counts(monkeypatch, tmp_path):
    """In nanoseconds, of all threads; a thread that has ended is left out."""
    for thread, text in (("1", "900 2000000000 7"), ("2", "900 500000000 7"), ("3", "")):
        (tmp_path / "task" / thread).mkdir(parents=True)
        (tmp_path / "task" / thread / "schedstat").write_text(text)
    ended = tmp_path / "task" / "4" / "schedstat"
    found = [*tmp_path.glob("task/*/schedstat"), ended]
    monkeypatch.setattr(Path, "glob", lambda path, pattern: found)
    assert timing._seconds_waited() == 2.5
    monkeypatch.setattr(Path, "glob", lambda path, pattern: [])
    assert timing._seconds_waited() == 0


def test_here_waits_only_grow():
    before = timing._seconds_waited()
    torch.randn(200, 200) @ torch.randn(200, 200)
    assert 0 <= before <= timing._seconds_waited()
