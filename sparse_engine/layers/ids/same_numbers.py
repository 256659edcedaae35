"""Whether two tensors hold the same numbers, at the speed of memory: a look in every forward."""

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor


def same_numbers(first: Tensor, second: Tensor) -> bool:
    """Return torch.equal of two integer tensors; on a CPU in half its time. Waits for a GPU."""
    if (first.dtype, first.device, first.shape) != (second.dtype, second.device, second.shape):
        return False
    plain = first.is_cpu and first.is_contiguous() and second.is_contiguous()
    if not plain or (compare := _compare_bytes()) is None:
        return torch.equal(first, second)
    return compare(first.data_ptr(), second.data_ptr(), first.nbytes) == 0


@functools.cache
def _compare_bytes() -> Callable[[int, int, int], int] | None:
    """Return C's memcmp, None where Python's own process does not have it (Windows)."""
    try:
        memcmp = ctypes.CDLL(None).memcmp
    except (TypeError, OSError, AttributeError):
        return None
    memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return memcmp
