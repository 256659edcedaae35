"""The native kernels: C++ that is compiled on this machine at first use, and kept.

A library that others can write is code that others run in this process: it is kept in a folder of
the user's own or not at all, and what it holds is compared with a checksum before it is loaded.
"""

import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from sparse_kernels.cpu.compiler import VARIABLE, CannotCompile, Compiler, compilers
from sparse_kernels.cpu.private_folder import private_folder
from sparse_kernels.measurements import FOLDER as CACHE
from sparse_kernels.measurements import cache_folder

SOURCE = Path(__file__).parent / "source"
FOLDER = "native"  # within the folder of all that is kept
# What activations may be, in the order of Number in source/vectors.h.
TYPES = (torch.float32, torch.bfloat16, torch.float16)
DAYS = 60  # that a library of other sources or another compiler is kept
# What crashes then ends another process than the user's. See probe.cpp.
PROBE = """
import ctypes, sys
values = (ctypes.c_float * 1000)(*range(1000))
ctypes.CDLL(sys.argv[1]).probe(values, ctypes.c_int64(1000), 2)
sys.exit(list(values) != [3.0 * i for i in range(1000)])
"""


@dataclass(frozen=True)
class _Found:
    library: ctypes.CDLL | None
    why_not: str | None


_found: _Found | None = None


def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, None where they cannot be compiled, which the log says once.

    The first call may take seconds, in which a compiler runs; nothing is looked for again later.
    """
    return _find().library


def why_not() -> str | None:
    """Return why there are no native kernels here, as one line; None where there are."""
    return _find().why_not


def _find() -> _Found:
    global _found
    if _found is None:
        with _lock(os.getpid()):
            _found = _found or _look()
    return _found


@functools.cache
def _lock(process: int) -> threading.Lock:
    """Return a lock of one process: a forked one may begin while another thread holds it."""
    return threading.Lock()


def _look() -> _Found:
    if os.environ.get(VARIABLE, "").strip().lower() == "off":
        return _Found(None, f"${VARIABLE} is off")
    try:
        return _Found(_library(), None)
    except (CannotCompile, OSError) as error:
        why_not = str(error)
    logging.getLogger(__name__).warning(
        "no native kernels, so sparse layers take as long as dense ones: %s (%s=off hides this)",
        why_not,
        VARIABLE,
    )
    return _Found(None, why_not)


def _library() -> ctypes.CDLL:
    """Return the library of the first compiler that makes one; CannotCompile or OSError if none."""
    if os.name != "posix":
        raise CannotCompile(f"they are not built on {sys.platform}")
    failures = []
    try:
        for compiler in compilers():
            try:
                return with_runtime(_loaded(compiler))
            except CannotCompile as error:
                failures.append(str(error))
    except CannotCompile as error:
        failures.append(str(error))
    raise CannotCompile("; ".join(failures))


def _loaded(compiler: Compiler) -> ctypes.CDLL:
    """Return what a compiler has built, now or earlier."""
    key = hashlib.sha256(f"{compiler.identity} {_sources()}".encode()).hexdigest()[:24]
    folder = _folder()
    for path in folder.glob(f"{key}-*.so") if folder else ():
        with suppress(OSError):  # deleted meanwhile, or of another machine after all
            if path.stem == f"{key}-{_digest(path)}":
                return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory(prefix="sparse-engine-") as place:
        built = Path(place) / "native.so"
        compiler.build(sorted(SOURCE.glob("*.cpp")), built)
        path = (folder and _copy(built, folder)) or built
        try:
            _probe(path)
            if path != built and folder:
                path = path.replace(folder / f"{key}-{_digest(path)}.so")
            # What is loaded stays when its file is deleted, as one of this process alone is.
            return ctypes.CDLL(str(path))
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _folder() -> Path | None:
    """Return the folder that libraries are kept in, None if others could write there."""
    try:
        return private_folder(cache_folder() / FOLDER)
    except OSError as error:
        _warn_of_cost(str(error))
        return None


def _copy(built: Path, folder: Path) -> Path | None:
    """Copy a library to a folder under a passing name; return it, None if there is no room."""
    name = None
    try:
        _clear(folder)
        number, name = tempfile.mkstemp(".part", dir=folder)
        with open(number, "wb") as file:
            file.write(built.read_bytes())
        return Path(name)
    except OSError as error:
        _warn_of_cost(str(error))
        if name is not None:
            Path(name).unlink(missing_ok=True)
        return None


def _clear(folder: Path) -> None:
    """Delete the libraries of sources that are gone, and what a broken-off process has left."""
    for path in folder.iterdir():
        with suppress(OSError):  # another process has
            if time.time() - path.lstat().st_mtime > DAYS * 24 * 3600:
                path.unlink()


@functools.cache
def _warn_of_cost(why: str) -> None:
    logging.getLogger(__name__).warning(
        "native kernels are compiled by each process anew, as they cannot be kept: %s "
        "($%s names another folder)",
        why,
        CACHE,
    )


def _probe(path: Path) -> None:
    """Raise CannotCompile if a new library crashes or computes nonsense, in another process."""
    command = [sys.executable or "", "-I", "-S", "-c", PROBE, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise CannotCompile("what was compiled hangs") from None
    except OSError:  # there is no Python to be called, as within another program
        return
    if done.returncode:
        complaint = (done.stderr.strip().splitlines() or [""])[-1][:300]
        raise CannotCompile(f"what was compiled does not run here ({done.returncode}) {complaint}")


def with_runtime(library: ctypes.CDLL) -> ctypes.CDLL:
    """Let a library use the threads of the OpenMP runtime that torch uses, if it has one."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    # None stands for all that the process has loaded for everybody.
    for name in (str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"), None):
        with suppress(OSError, AttributeError):
            parallel = ctypes.CDLL(name).GOMP_parallel  # also in the runtimes of Intel and LLVM
            library.use_runtime(ctypes.cast(parallel, ctypes.c_void_p))
            break
    return library


def _sources() -> str:
    files = sorted(file for file in SOURCE.iterdir() if file.suffix in (".cpp", ".h"))
    parts = (part for file in files for part in (file.name.encode(), file.read_bytes()))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:24]
