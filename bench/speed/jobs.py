"""Measurements in the order of their importance, within a budget of seconds.

A job is started only if the time left suffices, so that none is cut off half-way; one that fails
costs one line. An error that leaves the GPU unusable ends the process with DEVICE_LOST, for every
later job would fail too; a fresh process may go on. A journal keeps what has ended.
"""

import gc
import logging
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from bench.speed.journal import DEVICE_LOST, DONE, FAILED, Journal

# What has given no row in this process: a job that adds to it has failed.
without_row: list[str] = []


@dataclass(frozen=True)
class Job:
    """A measurement: its name, the seconds it should take, and what does it."""

    name: str
    seconds: float
    run: Callable[[], None]


class Budget:
    """Seconds that are left, and what estimates have been worth so far."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds
        self._estimated = self._spent = 0.0

    def left(self) -> float:
        """Return the seconds left."""
        return self._end - self._clock()

    def estimate(self, seconds: float) -> float:
        """Return an estimate corrected by those before: by half at least, fourfold at most."""
        if not self._estimated:
            return seconds
        return seconds * min(max(self._spent / self._estimated, 0.5), 4.0)

    def note(self, estimated: float, began: float) -> None:
        """Learn from a job that began when so much was left."""
        self._estimated += estimated
        self._spent += began - self.left()


def run_jobs(
    jobs: Sequence[Job],
    budget: Budget,
    first: int = 0,
    journal: Journal | None = None,
    ended: Collection[str] = (),
) -> None:
    """Run jobs in order, but those that would not end in time.

    Args:
        jobs: the most important ones first.
        budget: of all of them.
        first: number of the job to begin with.
        journal: gets what has ended.
        ended: names of those that an earlier call has done.

    Raises:
        SystemExit: DEVICE_LOST.
    """
    for number, job in enumerate(jobs[first:], first):
        if job.name in ended:
            continue
        expected, left = budget.estimate(job.seconds), budget.left()
        if expected > left:
            print(f"left out: {job.name}: takes {expected:.0f} s, {left:.0f} s left", flush=True)
            continue
        print(f"job {number} of {len(jobs)}: {job.name}, about {expected:.0f} s", flush=True)
        before = len(without_row)
        try:
            job.run()
        except Exception as error:
            say_no_row(job.name, error)
        budget.note(job.seconds, left)
        if journal:
            journal.note(job.name, FAILED if len(without_row) > before else DONE)
        free()


def say_no_row(name: str, error: BaseException) -> None:
    """Say in one line why there is no row; leave the process if the GPU is lost.

    The whole story goes to who listens to this module's logger. What the failure's frames hold is
    let go of: they may have filled the GPU's memory.
    """
    words = (str(error).strip() or "no message").splitlines()[0][:200]
    print(f"no row: {name}: {type(error).__name__}: {words}", flush=True)
    logging.getLogger(__name__).info("no row: %s", name, exc_info=error)
    without_row.append(name)
    chain: list[BaseException | None] = [None]
    while error not in chain:
        traceback.clear_frames(error.__traceback__)
        chain.append(error)
        error = error.__cause__ or error.__context__
    if torch.cuda.is_available() and not _is_usable():
        print("the GPU is lost to this process", flush=True)
        raise SystemExit(DEVICE_LOST) from None


def free() -> None:
    """Give back the GPU's memory of what is gone, and what was compiled of it.

    torch.compile gives up on a function that it has compiled eight times, of other networks too.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _is_usable() -> bool:
    """Return whether the GPU still computes; a random number takes memory and the generator too."""
    try:
        free()
        torch.cuda.synchronize()
        torch.randn(1, device="cuda")
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
