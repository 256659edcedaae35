"""Up to which density the gemm path was measured to be faster than the masked one, by layer.

`--tune` measures it on a CPU; where it was not measured, gemm_cost.py expects. The file is read
once a process, so that what another process measures meanwhile changes no result of this one.
"""

import functools

import torch

from sparse_kernels.measurements import Measurements


def gemm_limit(
    dtype: torch.dtype, sizes: tuple[int, ...], positions: int, threads: int
) -> float | None:
    """Return the density, None if it was not measured; arguments as of gemm_is_faster."""
    found = kept_limits().numbers.get(limit_key(dtype, sizes, positions, threads))
    return found[0] if found else None


def limit_key(dtype: torch.dtype, sizes: tuple[int, ...], positions: int, threads: int) -> str:
    """Return the name that a layer's limit is kept by."""
    return f"{dtype} {'x'.join(map(str, sizes))} {positions} {threads}"


@functools.cache
def kept_limits() -> Measurements:
    """Return the limits of this machine."""
    return Measurements("gemm-limits", torch.device("cpu"))
