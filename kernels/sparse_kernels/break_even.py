"""Up to which density the Triton kernels of a layer beat its dense form, by GPU and block.

Above it a layer runs dense (cuDNN, cuBLAS) on the scattered weight. The table holds what
`python -m bench.roofline` predicts for an H200: the share of the dense rate that reading the
blocks' activations through L2 leaves to forward and both gradients together. It is not measured.
"""

from __future__ import annotations

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
