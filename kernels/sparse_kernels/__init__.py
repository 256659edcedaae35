"""Block-sparse operators for PyTorch: a weight of which only the active blocks are stored."""

import torch

if [int(n) for n in torch.__version__.split(".")[:2]] < [2, 11]:
    raise ImportError(f"sparse_kernels needs torch 2.11 or newer, found {torch.__version__}")

from sparse_kernels.functional import block_conv2d, block_linear
from sparse_kernels.functional_fused import block_conv2d_fused
from sparse_kernels.layout import BlockLayout
from sparse_kernels.operators.batch_norm import Norm
from sparse_kernels.registration import decompositions

__all__ = [
    "BlockLayout",
    "Norm",
    "block_conv2d",
    "block_conv2d_fused",
    "block_linear",
    "decompositions",
]
