"""Where a run computes, and how: device, backend, data type, the same bits again."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from sparse_engine.config.config import Config, Dtype
from sparse_engine.errors import InputError, RunFailure, first_line
from sparse_kernels.dispatch.backend import BackendError, check_backend, forced_backend

DTYPES: dict[Dtype, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# cuBLAS reads it when it is first used; with buffers of its own for each stream it repeats itself.
WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def choose_device(config: Config) -> torch.device:
    """Return the device of a run, after checking that it and the backend are there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' is not available on this machine; use --device cpu")
    has_gpu = torch.cuda.is_available() and config.device != "cpu"
    if config.cuda_graph == "on" and not has_gpu:
        raise InputError("--cuda-graph on needs a CUDA GPU, found none; leave it out")
    device = torch.device("cuda" if has_gpu else "cpu")
    try:
        check_backend(config.backend, device)
    except BackendError as error:
        raise InputError(str(error)) from None
    return device


def on_backend(config: Config) -> AbstractContextManager[None]:
    """Run what is inside on a configuration's backend; `auto` is what the environment says."""
    return nullcontext() if config.backend == "auto" else forced_backend(config.backend)


def autocast(device: torch.device, dtype: Dtype) -> torch.autocast:
    """Return the context that a network of --dtype runs in; fp32 runs as it is."""
    reduced = DTYPES[dtype if dtype != "fp32" else "bf16"]
    return torch.autocast(device.type, reduced, enabled=dtype != "fp32")


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """While it is entered, choose algorithms that give the same bits every time.

    Enter it before CUDA is used. Without a wish cuDNN times its algorithms and takes the fastest.

    Raises:
        RunFailure: an operation has no such algorithm on this device.
    """
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    if wanted:
        os.environ.setdefault(*WORKSPACE)
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic = True
    cudnn.benchmark = not wanted
    try:
        yield
    except RuntimeError as error:
        if not wanted or "deterministic" not in str(error):
            raise
        reason = first_line(error).split(". ")[0]
        raise RunFailure(f"{reason}; leave out --deterministic") from None
    finally:
        if wanted:
            torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
