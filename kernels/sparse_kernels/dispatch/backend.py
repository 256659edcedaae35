"""Which implementation runs: `auto`, or what the environment asks for.

`auto` takes the Triton kernels on a CUDA GPU that has them, for data types and blocks they are
written for and densities below break-even; on a CPU the native kernels, where they can be built and
were measured to save time, or else should (all in cost_model.py); and the masked path (scatter the
blocks, then the dense operator) anywhere else.
"""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from sparse_kernels.cpu import norms
from sparse_kernels.cpu.library import TYPES as NATIVE_TYPES
from sparse_kernels.cpu.library import library, why_not
from sparse_kernels.dispatch.cost_model import (
    break_even_density,
    native_is_faster,
    native_limit,
)
from sparse_kernels.index_tensors import count_slots
from sparse_kernels.layout import block_grid
from sparse_kernels.transforms import is_transformed
from sparse_kernels.triton.launch import gpu_facts

VARIABLE = "SPARSE_ENGINE_BACKEND"
Backend = Literal["auto", "triton", "native", "masked"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
EARLIER = {"gemm": "native"}  # names until 0.2.0
# A block is clamped to a layer's channels rounded up to 16, so 48 and its like occur.
KERNEL_BLOCKS = range(16, 129, 16)
KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16)
# Norm, ReLU and gradients of images of fewer numbers take 0.8 to 2.3 times as long by the native
# kernels as by PyTorch's, of more 0.5 to 1.04 times.
FEW_NUMBERS = 1 << 18
_SAID: set[str] = set()
_ALLOWED = {"native": True}


class BackendError(RuntimeError):
    """The backend asked for cannot run here."""


def check_backend(name: str, device: torch.device) -> None:
    """Raise BackendError, in one line, unless backend `name` can run on `device`."""
    name = _present_name(name)
    if name not in BACKENDS:
        raise BackendError(f"backend '{name}' is unknown; choose from {', '.join(BACKENDS)}")
    if name == "native" and device.type != "cpu":
        raise BackendError(
            f"backend 'native' runs on a CPU, found device '{device.type}'; "
            "use --backend auto or triton"
        )
    if name == "native" and not _is_built():
        raise BackendError(f"backend 'native' cannot run here, {why_not()}; use --backend masked")
    if name != "triton" or (device.type == "cpu" and _interpreted()):
        return
    if device.type != "cuda":
        raise BackendError(
            f"backend 'triton' needs a CUDA GPU, found device '{device.type}'; "
            "use --backend auto or masked"
        )
    if _too_old(device):
        raise BackendError("backend 'triton' needs a GPU of capability 8.0 or newer; use masked")


@contextmanager
def without_native() -> Iterator[None]:
    """Let `auto` take no native kernels inside, as where they cannot be built."""
    before, _ALLOWED["native"] = _ALLOWED["native"], False
    try:
        yield
    finally:
        _ALLOWED["native"] = before


@contextmanager
def forced_backend(name: Backend) -> Iterator[None]:
    """Run what is inside on one backend, whatever the environment says."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def backend_of(
    x: Tensor, index: Sequence[Tensor], sizes: Sequence[int], positions: int | None = None
) -> str:
    """Return the backend of a layer with input x and BlockLayout.tensors() and .sizes().

    Density counts the slots, for the number of active blocks is not known without waiting for the
    device. See choose_backend.
    """
    # Plain numbers, also while a graph is traced: a weight's sizes do not change.
    sizes = tuple(map(int, sizes))
    density = int(count_slots(index)) / math.prod(block_grid(sizes[:4], sizes[4:]))
    if torch.compiler.is_compiling():
        # Measurements on a CPU, in files, are nothing to trace; whoever asks then asks of a GPU.
        positions = None
    return choose_backend(x.device, x.dtype, sizes, density, positions)


def choose_backend(
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    density: float,
    positions: int | None = None,
) -> str:
    """Return "triton", "native" or "masked" for a layer.

    Args:
        device, dtype: of its input.
        sizes: (O, C, R, S, BO, BC), as BlockLayout.sizes().
        density: active blocks / all blocks.
        positions: N * P * Q of the output, or the rows of a linear layer's input. None where only
            the order of a result is asked for, which does not depend on it.

    Raises:
        BackendError: the environment asks for what cannot run.
    """
    wanted = _present_name(os.environ.get(VARIABLE, "auto"))
    check_backend(wanted, device)
    if wanted == "masked":
        return wanted
    if wanted == "native":
        return "native" if dtype in NATIVE_TYPES else "masked"
    if wanted == "auto" and device.type != "cuda":
        on_cpu = device.type == "cpu" and positions is not None
        faster = on_cpu and _prefers_native(dtype, sizes, density, positions)
        return "native" if faster and _ALLOWED["native"] and _is_built() else "masked"
    problem = _problem(dtype, sizes[4:])
    if wanted == "triton" and problem:
        raise BackendError(f"backend 'triton' has no kernel for {problem}; use auto or masked")
    if wanted == "auto" and (problem or _too_old(device)):
        _say_once(f"the Triton kernels do not cover {problem or 'this GPU'}; running masked-dense")
        return "masked"
    if wanted == "auto" and density > break_even_density(_generation(device), sizes[4:]):
        return "masked"
    return "triton"


def norm_backend(x: Tensor) -> str:
    """Return "triton", "native" or "masked", which is PyTorch's own, for a batch norm of x.

    The Triton kernels belong to layers that run on them, and are not considered further here.
    """
    wanted = _present_name(os.environ.get(VARIABLE, "auto"))
    if x.device.type != "cpu" or wanted == "triton":
        return "triton"
    if wanted == "masked" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "masked"
    if is_transformed() or not norms.supports(x):
        return "masked"
    faster = wanted == "native" or (x.numel() >= FEW_NUMBERS and _ALLOWED["native"])
    return "native" if faster and _is_built() else "masked"


def _prefers_native(
    dtype: torch.dtype, sizes: tuple[int, ...], density: float, positions: int
) -> bool:
    if dtype not in NATIVE_TYPES:
        return False
    threads = torch.get_num_threads()
    limit = native_limit(dtype, sizes, positions, threads)
    if limit is None:
        return native_is_faster(dtype, sizes, density, positions, threads)
    return density <= limit


def _is_built() -> bool:
    # A compiler that traces is asked again when its code runs.
    return torch.compiler.is_compiling() or library() is not None


def _present_name(name: str) -> str:
    """Return the name of a backend that was called otherwise, which the log says once."""
    present = EARLIER.get(name, name)
    if present != name:
        _say_once(f"backend '{name}' is called '{present}' now; the earlier name goes in 0.2.0")
    return present


def _problem(dtype: torch.dtype, block: tuple[int, ...]) -> str:
    if dtype not in KERNEL_TYPES:
        return str(dtype)
    return "" if all(size in KERNEL_BLOCKS for size in block) else f"block {block}"


def _generation(device: torch.device) -> int:
    return gpu_facts(device)[0]


def _too_old(device: torch.device) -> bool:
    """Return whether a GPU is older than every generation of the tile table (8.0)."""
    return _generation(device) == 0


def _say_once(message: str) -> None:
    # While a graph is traced nothing can be logged; the operators in it ask again when they run.
    if torch.compiler.is_compiling() or message in _SAID:
        return
    _SAID.add(message)
    logging.getLogger(__name__).warning(message)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
