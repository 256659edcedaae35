"""Joules a GPU has used, from the driver's own library, without any package; None without it."""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Callable

# The driver's counter moves every 20 to 100 ms: what it misses at both ends is 5 % of this.
SECONDS = 2.0


def joules_a_round(rounds: Callable[[], int]) -> float | None:
    """Return the joules of one round, over two seconds at least; None where nothing is counted.

    Args:
        rounds: makes some, waits until the device has done them, and returns how many.
    """
    before, began, made = joules(), time.perf_counter(), 0
    if before is None:
        return None
    while time.perf_counter() - began < SECONDS:
        made += rounds()
    after = joules()
    return (after - before) / made if after is not None and after > before else None


def joules() -> float | None:
    """Return the energy used by the first visible GPU since its driver was loaded."""
    found = _device()
    if found is None:
        return None
    library, device = found
    millijoules = ctypes.c_ulonglong()
    if library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
        return None
    return millijoules.value / 1e3


@functools.cache
def _device() -> tuple[ctypes.CDLL, ctypes.c_void_p] | None:
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
