"""A budget of seconds: no job is begun that would not end in time, and none ends the others."""

import pytest

from bench import jobs
from bench.jobs import Budget, Job, run_jobs


class FakeClock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def timed(clock, done, name, seconds, estimate=None):
    def run():
        clock.now += seconds
        done.append(name)

    return Job(name, estimate or seconds, run)


def test_no_job_is_begun_that_would_not_end_in_time(clock, capsys):
    done = []
    plan = [timed(clock, done, f"{s} s", s) for s in (30, 40, 50, 20)]
    run_jobs(plan, Budget(100, clock))
    assert done == ["30 s", "40 s", "20 s"]
    assert clock.now - 100 <= 100
    assert "left out: 50 s: takes 50 s, 30 s left" in capsys.readouterr().out


def test_estimates_learn_from_the_jobs_before(clock):
    done = []
    slow = [timed(clock, done, f"{n}", 30, estimate=10) for n in range(5)]
    run_jobs(slow, Budget(100, clock))
    assert done == ["0", "1", "2"]  # the fourth would take 30 of the 10 seconds left


def test_a_job_that_fails_costs_one_line(clock, capsys):
    done = []

    def fail():
        raise RuntimeError("out of memory\nand a long story")

    run_jobs([Job("bad", 1, fail), timed(clock, done, "good", 1)], Budget(9, clock))
    assert done == ["good"]
    assert "no row: bad: RuntimeError: out of memory\n" in capsys.readouterr().out


def test_jobs_go_on_from_a_number(clock):
    done = []
    run_jobs([timed(clock, done, name, 1) for name in "abc"], Budget(9, clock), first=1)
    assert done == ["b", "c"]


def test_a_lost_gpu_ends_the_process(monkeypatch, clock):
    def lost():
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(jobs.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(jobs.torch.cuda, "synchronize", lost)
    with pytest.raises(SystemExit) as ended:
        run_jobs([Job("bad", 1, lost)], Budget(9, clock))
    assert ended.value.code == jobs.DEVICE_LOST
