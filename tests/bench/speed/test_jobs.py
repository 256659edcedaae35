"""A budget of seconds: no job is begun that would not end in time, and none ends the others."""

import ast
import weakref
from types import SimpleNamespace

import pytest
import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from bench.speed import jobs
from bench.speed.jobs import Budget, Job, run_jobs
from bench.speed.journal import Journal


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


@pytest.fixture
def fake_gpu(monkeypatch):
    """A GPU on which nothing is wrong; return the module's torch.cuda, to break something."""
    monkeypatch.setattr(jobs, "free", lambda: None)
    cuda = SimpleNamespace(is_available=lambda: True, synchronize=lambda: None)
    fake = SimpleNamespace(cuda=cuda, randn=lambda *_, device: torch.zeros(1))
    monkeypatch.setattr(jobs, "torch", fake)
    return fake


def fail(words: str):
    def run(*_, **__):
        raise RuntimeError(words)

    return run


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("synchronize", "an illegal memory access was encountered"),
        ("randn", "Offset increment outside graph capture encountered unexpectedly."),
        ("free", "an illegal memory access was encountered"),
    ],
)
def test_a_lost_gpu_ends_the_process(where, words, monkeypatch, clock, fake_gpu, tmp_path):
    place = {"synchronize": fake_gpu.cuda, "randn": fake_gpu, "free": jobs}[where]
    monkeypatch.setattr(place, where, fail(words))
    journal = Journal(tmp_path, "run")
    with pytest.raises(SystemExit) as ended:
        run_jobs([Job("bad", 1, fail("wrong"))], Budget(9, clock), journal=journal)
    assert ended.value.code == jobs.DEVICE_LOST
    assert journal.ended() == set()  # it is taken up by the next call


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("operation not permitted when stream is capturing"),
        CompilationError("def kernel(): pass", ast.parse("x").body[0], "unsupported"),
        OutOfResources(300_000, 232_448, "shared memory"),
        MemoryError(),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_costs_its_own_row_and_no_other(error, clock, fake_gpu, tmp_path, capsys):
    done, freed, journal = [], [], Journal(tmp_path, "run")

    class Memory:
        pass

    def run():
        held = Memory()
        freed.append(weakref.ref(held))
        raise error

    plan = [Job("bad", 1, run), timed(clock, done, "good", 1)]
    run_jobs(plan, Budget(9, clock), journal=journal)
    assert done == ["good"]
    assert freed[0]() is None  # though the error, with its frames, is still alive
    assert (journal.ended(), journal.ended(again=True)) == ({"bad", "good"}, {"good"})
    said = capsys.readouterr().out
    assert f"no row: bad: {type(error).__name__}: " in said
    assert "lost" not in said


def test_a_job_with_a_row_missing_has_failed(clock, tmp_path):
    journal = Journal(tmp_path, "run")
    plan = [Job("some", 1, lambda: jobs.say_no_row("one of them", RuntimeError("wrong")))]
    run_jobs(plan, Budget(9, clock), journal=journal)
    assert (journal.ended(), journal.ended(again=True)) == ({"some"}, set())


def test_what_has_ended_is_not_done_again(clock, tmp_path):
    """A second call does the jobs that the first had no time for."""
    done, plan = [], []
    plan += [timed(clock, done, f"{s} s", s) for s in (30, 40, 50, 20)]
    journal = Journal(tmp_path, "run")
    run_jobs(plan, Budget(60, clock), journal=journal)
    run_jobs(plan, Budget(100, clock), journal=journal, ended=journal.ended())
    assert done == ["30 s", "20 s", "40 s", "50 s"]
