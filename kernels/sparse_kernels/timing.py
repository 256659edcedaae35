"""How long one call takes, by the clock that disturbs it least."""

import time
from collections.abc import Callable

import torch

# Launches a measurement; the GPU sleeps while they are queued, so that no launch is waited for.
LAUNCHES = 4
SLEEP_CYCLES = 2_000_000


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
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(SLEEP_CYCLES)
    began.record()
    for _ in range(LAUNCHES):
        run()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3 / LAUNCHES
