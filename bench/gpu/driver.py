"""What a run is of: the GPU's name from its driver, and the code's version. Imports no torch."""

from __future__ import annotations

import ctypes
import hashlib
from importlib import metadata
from pathlib import Path

from bench.report.records import commit

ROOT = Path(__file__).parents[2]
CODE = ("bench", "kernels", "sparse_engine")


def gpu_name() -> str | None:
    """Return the name of the first visible GPU, None without one; nothing is begun on it."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    library.cuDeviceGet(ctypes.byref(device), 0)
    library.cuDeviceGetName(name, len(name), device)
    return name.value.decode()


def facts(device: str, plan: str) -> dict[str, str]:
    """Return what must be the same for a run to go on: device, plan, versions, every line of code.

    A commit alone does not say what was changed since.
    """
    code = hashlib.sha256()
    for path in sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py")):
        code.update(path.read_bytes())
    versions = {name: _version(name) for name in ("torch", "triton")}
    return {
        "device": device,
        "plan": plan,
        "commit": commit(),
        "code": code.hexdigest()[:12],
        **versions,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"
