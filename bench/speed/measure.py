"""Times, energy and memory of what takes turns on a device.

Energy is read from the driver's own library, without any package; there is none without it.
"""

import ctypes
import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench.speed.timing import STEP, Clock, Key, Phases, clock_of, in_turn

SECONDS = 1.2  # of GPU time that a variant's rounds take together
# The driver's counter moves every 20 to 100 ms: what it misses at both ends is 5 % of this.
ENERGY_SECONDS = 2.0
ROUNDS = (8, 40)  # fewest and most of them


def measure(
    phases: Mapping[Key, Phases], device: str, rounds: int
) -> tuple[dict[Key, dict[str, list[float]]], float | None]:
    """Return the times of variants that take turns, and the joules of a step where they are known.

    Args:
        phases: by variant; on a GPU one at a time, so that it has the memory for itself.
        device: "cuda" or "cpu".
        rounds: on a CPU; on a GPU as many as fit a second.
    """
    clock = clock_of(device)
    if device == "cpu":
        return in_turn(phases, rounds, clock), None
    first = in_turn(phases, 2, clock)
    longest = max(max(times[STEP]) for times in first.values())
    rounds = int(min(max(SECONDS / longest, ROUNDS[0]), ROUNDS[1]))
    times = in_turn(phases, rounds, clock, warm_up=0)
    return times, _joules_a_round(phases, rounds, clock) if len(phases) == 1 else None


def memory(device: str) -> float:
    """Return the MB that tensors take on the GPU; 0 without one."""
    return torch.cuda.memory_allocated() / 1e6 if device == "cuda" else 0.0


def peak_of(run: Callable[[], Any], device: str, before: float = 0.0) -> float | None:
    """Run something; return the peak of the GPU's memory above `before`, in MB."""
    if device != "cuda":
        run()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e6 - before


def joules() -> float | None:
    """Return the energy used by the first visible GPU since its driver was loaded."""
    meter = _meter()
    if meter is None:
        return None
    library, device = meter
    millijoules = ctypes.c_ulonglong()
    if library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
        return None
    return millijoules.value / 1e3


def _joules_a_round(phases: Mapping[Any, Phases], rounds: int, clock: Clock) -> float | None:
    """Return the joules of one round, over two seconds at least; None where nothing is counted."""
    before, began, made = joules(), time.perf_counter(), 0
    if before is None:
        return None
    while time.perf_counter() - began < ENERGY_SECONDS:
        in_turn(phases, rounds, clock, warm_up=0)
        made += rounds
    after = joules()
    return (after - before) / made if after is not None and after > before else None


@functools.cache
def _meter() -> tuple[ctypes.CDLL, ctypes.c_void_p] | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    device = ctypes.c_void_p()
    if library.nvmlInit_v2():
        return None
    if visible.isdigit():
        failed = library.nvmlDeviceGetHandleByIndex_v2(int(visible), ctypes.byref(device))
    else:
        failed = library.nvmlDeviceGetHandleByUUID(visible.encode(), ctypes.byref(device))
    return None if failed else (library, device)
