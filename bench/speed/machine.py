"""What this machine has: a GPU by its driver, a C compiler, versions. Imports no torch."""

import ctypes
import hashlib
import os
import shutil
import sysconfig
from importlib import metadata
from pathlib import Path

from bench.report.records import commit
from sparse_engine.errors import InputError

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
    digest = code.hexdigest()[:12]
    return {"device": device, "plan": plan, "commit": commit(), "code": digest, **versions}


def check_tools() -> None:
    """Do nothing if Triton can build what launches its kernels: C, compiled on this machine.

    Triton 3.6 compiles a launcher for every signature, newer ones a single module; all need a
    compiler and Python's headers, and say so only in the traceback of the first kernel.

    Raises:
        InputError: there is no C compiler that Triton finds, or no Python.h.
    """
    needs = "Triton needs one (gcc or clang, or CC=...) and Python's headers"
    chosen = os.environ.get("CC")
    if chosen and not shutil.which(chosen):
        raise InputError(f"no C compiler: CC={chosen} is not there; {needs}")
    if not chosen and not any(map(shutil.which, ("gcc", "clang"))):
        other = "; set CC=cc" if shutil.which("cc") else ""
        raise InputError(f"no C compiler: {needs}{other}")
    header = _headers() / "Python.h"
    if not header.exists():
        raise InputError(
            f"no Python headers: Triton needs them and a C compiler, and '{header}' is not there; "
            "install python3-dev or its like"
        )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _headers() -> Path:
    """Return the folder that Triton looks into."""
    scheme = sysconfig.get_default_scheme()
    # Debian's own, where packages go but headers do not.
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    return Path(sysconfig.get_paths(scheme=scheme)["include"])
