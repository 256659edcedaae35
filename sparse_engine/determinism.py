"""--deterministic: the same bits again from the same command, on one device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sparse_engine.errors import RunFailure

# cuBLAS reads it when it is first used; with buffers of its own for each stream it repeats itself.
WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """While it is entered, choose algorithms that give the same bits every time.

    Enter it before CUDA is used. Without a wish cuDNN times its algorithms and takes the fastest.

    Raises:
        RunFailure: an operation has no such algorithm on this device.
    """
    cudnn = torch.backends.cudnn
    if not wanted:
        before, cudnn.benchmark = cudnn.benchmark, True
        try:
            yield
        finally:
            cudnn.benchmark = before
        return
    os.environ.setdefault(*WORKSPACE)
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).split(". ")[0].splitlines()[0]
        raise RunFailure(f"{reason}; leave out --deterministic") from None
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
