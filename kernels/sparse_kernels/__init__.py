"""Block-sparse operators for PyTorch: a weight of which only the active blocks are stored."""

from sparse_kernels.functional import block_conv2d, block_linear
from sparse_kernels.layout import BlockLayout

__all__ = ["BlockLayout", "block_conv2d", "block_linear"]
