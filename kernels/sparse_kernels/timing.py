"""How long one call takes, by the clock that is disturbed least, and how far it was disturbed.

Threads of one call wait for each other, so that one which has no core, because other programs run,
holds up all. Linux counts the wait of each (its sched-stats.txt: the second number of schedstat).
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

# Launches a measurement; the GPU sleeps while they are queued, so that no launch is waited for.
LAUNCHES = 4
# About 11 ms, where four passes of a layer take 1 to 3 ms of the host's time.
SLEEP_CYCLES = 20_000_000
# How much longer it sleeps where that was not enough, and how often at most: a call that waits for
# the device itself would never be queued in time.
LONGER, ATTEMPTS = 4, 3
# What a thread may wait of its time. Two on two cores of an AMD EPYC waited 0.004 alone, 0.012
# beside a program of least priority, 0.38 beside one of usual priority, 0.66 beside two.
MOST_WAIT = 0.1


def once(run: Callable[[], object], on_gpu: bool) -> float:
    """Return the seconds of a call that has been made before, so that nothing is compiled.

    On a GPU they are the device's; on a CPU those of the process where one thread works, which
    other processes disturb little, else those of the clock.
    """
    if not on_gpu:
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        began = clock()
        run()
        return clock() - began
    seconds = 0.0
    for attempt in range(ATTEMPTS):
        seconds, in_time = _on_device(run, SLEEP_CYCLES * LONGER**attempt)
        if in_time:
            break
    return seconds


def in_turn(calls: Sequence[Callable[[], object]], rounds: int, on_gpu: bool) -> list[list[float]]:
    """Return the seconds of each round of calls that take turns; a round before is not kept."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for run, seconds in zip(calls, taken):
            found = once(run, on_gpu)
            if number:
                seconds.append(found)
    return taken


def medians_in_turn(
    calls: Sequence[Callable[[], object]], rounds: int, on_gpu: bool
) -> list[float]:
    """Return the median seconds of calls that take turns, as in_turn."""
    return [statistics.median(seconds) for seconds in in_turn(calls, rounds, on_gpu)]


def rounds_within(seconds: float, one_round: float, most: int) -> int:
    """Return how many rounds of a known length fit into some seconds: one at least, or `most`."""
    return max(1, min(most, int(seconds / one_round)))


class CoreWait:
    """The share of its time that a thread of this process waits for a core, from its making on.

    on_gpu: whether a GPU's clock is read meanwhile, which such waits do not move.
    """

    def __init__(self, on_gpu: bool = False) -> None:
        self._on_gpu = on_gpu
        self._began, self._waited = time.perf_counter(), _seconds_waited()

    def share(self) -> float:
        """Return the mean over torch's threads.

        It is 0 where nothing waits: on a GPU; with one thread, for which the process's own clock is
        read (see `once`); and where the system does not count.
        """
        threads = torch.get_num_threads()
        if self._on_gpu or threads == 1:
            return 0.0
        waited = max(0.0, _seconds_waited() - self._waited)
        return min(1.0, waited / threads / (time.perf_counter() - self._began))


def disturbance(share: float) -> str | None:
    """Return what is to be said of times that were taken meanwhile; None where there is nothing."""
    if share <= MOST_WAIT:
        return None
    threads = torch.get_num_threads()
    return (
        f"the {threads} threads that were timed waited for a core in {share:.0%} of their time, so "
        "these times say little: other programs run here, or there are fewer cores"
    )


def _on_device(run: Callable[[], object], cycles: int) -> tuple[float, bool]:
    """Return the device's seconds of a call, and whether all were queued before the first began."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(cycles)
    began.record()
    for _ in range(LAUNCHES):
        run()
    ended.record()
    in_time = not began.query()
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3 / LAUNCHES, in_time


def _seconds_waited() -> float:
    """Return what all threads of this process have waited for a core so far."""
    waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            waited += int(path.read_text(encoding="ascii").split()[1])
        except (OSError, IndexError):  # a thread that has ended, or a system that does not count
            continue
    return waited / 1e9
