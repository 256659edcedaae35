"""The native kernels: C++ that is compiled on this machine at first use."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).parent / "source"


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, None where they cannot be compiled."""
    target = Path(tempfile.mkdtemp()) / "native.so"
    files = sorted(str(path) for path in SOURCE.glob("*.cpp"))
    flags = ["-O3", "-march=native", "-mprefer-vector-width=512", "-std=c++17", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, "-o", str(target), *files], check=True)
    loaded = ctypes.CDLL(str(target))
    runtime = next(Path(torch.__file__).parent.glob("lib/libgomp*"), None)
    if runtime is not None:
        gomp = ctypes.CDLL(str(runtime))
        loaded.use_runtime(ctypes.cast(gomp.GOMP_parallel, ctypes.c_void_p))
    return loaded
