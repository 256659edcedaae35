"""When the gemm path should be faster than the masked one: fitted to python -m bench.dev.cpu_table.

The ratio of their times is taken as a straight line in the density. Its slope falls with the block,
for a wider product runs nearer to the processor's peak, and rises where a product has few rows and
its call costs more than its arithmetic. What is left at density zero are the copies to and from
panels, which a layer of few channels feels most.
"""

import functools

import torch

from sparse_kernels.cpu.linear import rows_at_a_time
from sparse_kernels.measurements import Measurements, timings

# Products of narrower blocks run far from the peak: those of 8 took three times the masked time.
LEAST_BLOCK = 16
# Above this ratio nothing is gained that another machine could not lose.
LARGEST_RATIO = 0.8
# Multiplications that a core does in the time of one call.
CALL = 5e4
# The masked path is so much faster in bf16, where the processor has instructions for it.
MASKED_SPEED = {torch.bfloat16: 2.0}


@functools.lru_cache(maxsize=4096)
def gemm_is_faster(
    dtype: torch.dtype, sizes: tuple[int, ...], density: float, positions: int, threads: int
) -> bool:
    """Return whether a CPU should run a layer on the gemm path.

    Args:
        dtype: of the activations.
        sizes: (O, C, R, S, BO, BC), as BlockLayout.sizes().
        density: active blocks / all blocks.
        positions: N * P * Q of the output, or the rows of a linear layer's input.
        threads: that share a product.
    """
    if min(sizes[4:]) < LEAST_BLOCK:
        return False
    ratio = MASKED_SPEED.get(dtype, 1.0) * gemm_ratio(sizes, density, positions / threads)
    return ratio < LARGEST_RATIO


def gemm_ratio(sizes: tuple[int, ...], density: float, positions: float) -> float:
    """Return the time of forward and both gradients in fp32 over that of the masked path.

    Args:
        sizes, density: as above.
        positions: of one thread.
    """
    out_channels, in_channels, _, _, bo, bc = sizes
    rows = max(1.0, min(positions, rows_at_a_time((bo, bc))))
    slope = 1.1 + 16 / min(bo, bc) + 2 * CALL / (rows * bo * bc)
    return density * slope + 0.05 + 12 / min(out_channels, in_channels)


# By the block's smaller side; a GPU generation without a row of its own has the nearest older one.
BREAK_EVEN = {
    80: {16: 0.05, 32: 0.15, 64: 0.3, 128: 0.5},
    90: {16: 0.05, 32: 0.15, 64: 0.3, 128: 0.5},
}


def break_even_density(arch: int, block: tuple[int, int]) -> float:
    """Return the density above which a layer runs dense.

    Args:
        arch: of tiles.generation().
        block: (BO, BC).
    """
    row = BREAK_EVEN[max(known for known in BREAK_EVEN if known <= max(arch, min(BREAK_EVEN)))]
    side = min(block)
    # No default of max(), through which Dynamo of torch 2.11 cannot trace.
    return row[max([min(row), *(known for known in row if known <= side)])]


def gemm_limit(
    dtype: torch.dtype, sizes: tuple[int, ...], positions: int, threads: int
) -> float | None:
    """Return the density, None if it was not measured; arguments as of gemm_is_faster."""
    limit = kept_limits().entries.get(limit_key(dtype, sizes, positions, threads))
    return limit[0] if limit else None


def limit_key(dtype: torch.dtype, sizes: tuple[int, ...], positions: int, threads: int) -> str:
    """Return the name that a layer's limit is kept by."""
    return f"{dtype} {'x'.join(map(str, sizes))} {positions} {threads}"


@functools.cache
def kept_limits() -> Measurements[list[float]]:
    """Return the limits of this machine, a density by key."""
    return timings("gemm-limits", torch.device("cpu"), _density)


def _density(numbers: list[float]) -> list[float]:
    (density,) = numbers
    return [float(density)]
