"""A backend asked for while something runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from sparse_kernels.backend import VARIABLE


@contextlib.contextmanager
def running_on(backend: str) -> Iterator[None]:
    """Ask for a backend in what runs here."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
