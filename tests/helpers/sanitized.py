"""Tests against native kernels that tell of every access outside of memory (AddressSanitizer).

`run_sanitized("-m", "pytest", "tests/kernels/cpu/test_x.py", "-k", "edges")` runs Python so.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Undefined behaviour, which would only be told of, ends the process, too.
OPTIONS = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"


def run_sanitized(*arguments: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, and native kernels that are checked; skip without g++.

    Raises:
        AssertionError: it failed, or memory was used that is not a tensor's; with what was said.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    said = done.stdout + done.stderr
    found = re.search(r"(?:ERROR: AddressSanitizer|runtime error:)", said)
    at = max(0, found.start() - 200) if found else max(0, len(said) - 3000)
    assert done.returncode == 0, f"{done.returncode}: {said[at : at + 3000]}"
    assert not found, said[at : at + 3000]
    return done


def _environment() -> dict[str, str]:
    compiler = shutil.which("g++")
    runtime = compiler and _path_of_library(compiler, "libasan.so")
    if not runtime:
        pytest.skip("needs g++ with AddressSanitizer")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / p) for p in ("kernels", ".", "tests/helpers")),
        "SPARSE_ENGINE_CXX": f"{compiler} {OPTIONS}",
        # To be loaded first, with the library that throws exceptions, which it looks for there.
        "LD_PRELOAD": f"{runtime} {_path_of_library(compiler, 'libstdc++.so.6')}",
        # Python itself frees little at its end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }


def _path_of_library(compiler: str, name: str) -> str | None:
    command = [compiler, f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return os.path.realpath(path) if os.path.isabs(path) else None
