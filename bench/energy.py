"""Joules a GPU has used, from the driver's own library, without any package; None without it."""

from __future__ import annotations

import ctypes
import functools
import os


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
