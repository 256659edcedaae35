"""How long one call takes, by the clock that disturbs it least."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

# Launches a measurement; the GPU sleeps while they are queued, so that no launch is waited for.
LAUNCHES = 4
# About 11 ms, where four passes of a layer take 1 to 3 ms of the host's time.
SLEEP_CYCLES = 20_000_000
# How much longer it sleeps where that was not enough, and how often at most: a call that waits for
# the device itself would never be queued in time.
LONGER, ATTEMPTS = 4, 3


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
