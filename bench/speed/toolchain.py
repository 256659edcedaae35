"""Whether Triton can build what launches its kernels: C, compiled on the machine it runs on.

Triton 3.6 compiles a launcher for every signature, newer ones a single module; all need a compiler
and Python's headers, and say so only in the traceback of the first kernel. Imports no torch.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

from sparse_engine.errors import InputError


def check_tools() -> None:
    """Do nothing if all is there.

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


def _headers() -> Path:
    """Return the folder that Triton looks into."""
    scheme = sysconfig.get_default_scheme()
    # Debian's own, where packages go but headers do not.
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    return Path(sysconfig.get_paths(scheme=scheme)["include"])
