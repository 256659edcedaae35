"""Which path should be faster: on a CPU fitted to python -m bench.dev.cpu_table.

The time of the native kernels over the dense layer's is taken as a straight line in the density.
Its slope is what a product of a block costs against the library's, by the width of the block. What
is left at density zero are the copies of activations, which a layer of few channels feels most. The
masked path costs what the dense layer does, and scatters and gathers all weights besides, which
shows where there are few positions for each.
"""

import functools
import platform

import torch

from sparse_kernels.cpu.channel_vectors import PASSES
from sparse_kernels.cpu.native import runs_over_channels
from sparse_kernels.measurements import Measurements, timings

# By the narrower side of a block.
SLOPES = {1: 2.0, 2: 1.5, 4: 1.1, 8: 1.05, 16: 1.04, 32: 1.0, 64: 0.95}
# Blocks below are multiplied in vectors over pixels, of which there should be many.
WIDE, PIXELS = 16, 110.0
# At density zero: 8 / (channels + 4), and what nothing saves.
COPIES, LEAST = (8.0, 4.0), 0.025
# Positions for which the scattering of all weights takes as long as the dense layer.
SCATTER = 35.0
# Above this ratio nothing is gained that another machine could not lose.
LARGEST_RATIO = 0.9
# The library's speed over that in fp32: where the processor has instructions for bf16, and on an
# x86 one without, where a Xeon's convolutions and products took 3.5 to 4.3 times as long, in fp16
# 35 to 70 times.
SPEED, SPEED_WITHOUT = {torch.bfloat16: 2.0}, {torch.bfloat16: 0.25, torch.float16: 0.03}
# That of the native kernels where they multiply pairs of bf16: the median of 84 layers, blocks and
# densities on a Zen 4, a quarter of which gained less than 1.6. With AMX not measured, so 1.
PAIRS_SPEED = 1.65


@functools.lru_cache(maxsize=4096)
def native_is_faster(
    dtype: torch.dtype, sizes: tuple[int, ...], density: float, positions: int, threads: int
) -> bool:
    """Return whether a CPU should run a layer on the native kernels.

    Args:
        dtype: of the activations.
        sizes: (O, C, R, S, BO, BC), as BlockLayout.sizes().
        density: active blocks / all blocks.
        positions: N * P * Q of the output, or the rows of a linear layer's input.
        threads: that share a product.
    """
    return expected_ratio(dtype, sizes, density, positions, threads) < LARGEST_RATIO


def expected_ratio(
    dtype: torch.dtype, sizes: tuple[int, ...], density: float, positions: int, threads: int
) -> float:
    """Return the native kernels' time over the masked path's; arguments as above."""
    native = native_ratio(sizes, density, positions / threads) / native_speed(dtype, sizes)
    return native * library_speed(dtype) / masked_ratio(positions)


def native_ratio(sizes: tuple[int, ...], density: float, positions: float) -> float:
    """Return the time of forward and both gradients in fp32 over that of the dense layer.

    Args:
        sizes, density: as above.
        positions: of one thread.
    """
    out_channels, in_channels, _, _, bo, bc = sizes
    side = min(bo, bc)
    slope = SLOPES[max(known for known in SLOPES if known <= side)]
    if side < WIDE:
        slope *= 1 + PIXELS / positions
    copies, channels = COPIES
    return density * slope + LEAST + copies / (min(out_channels, in_channels) + channels)


def masked_ratio(positions: int) -> float:
    """Return the same of the masked path."""
    return 1 + SCATTER / positions


def library_speed(dtype: torch.dtype) -> float:
    """Return how fast this processor's library multiplies a data type, over fp32."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    if is_x86 and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return SPEED_WITHOUT.get(dtype, 1.0)
    return SPEED.get(dtype, 1.0)


def native_speed(dtype: torch.dtype, sizes: tuple[int, ...]) -> float:
    """Return how fast the native kernels multiply a data type, over fp32."""
    cpu = torch.cpu
    has_pairs = cpu._is_avx512_bf16_supported() and not cpu._is_amx_tile_supported()
    if dtype != torch.bfloat16 or not has_pairs:
        return 1.0
    return PAIRS_SPEED if all(runs_over_channels(name, sizes) for name in PASSES) else 1.0


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


def native_limit(
    dtype: torch.dtype, sizes: tuple[int, ...], positions: int, threads: int
) -> float | None:
    """Return the density, None if it was not measured; arguments as of native_is_faster."""
    limit = kept_limits().entries.get(limit_key(dtype, sizes, positions, threads))
    return limit[0] if limit else None


def limit_key(dtype: torch.dtype, sizes: tuple[int, ...], positions: int, threads: int) -> str:
    """Return the name that a layer's limit is kept by."""
    return f"{dtype} {'x'.join(map(str, sizes))} {positions} {threads}"


@functools.cache
def kept_limits() -> Measurements[list[float]]:
    """Return the limits of this machine, a density by key."""
    return timings("native-limits", torch.device("cpu"), _density)


def _density(numbers: list[float]) -> list[float]:
    (density,) = numbers
    return [float(density)]
