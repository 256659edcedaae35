"""The native kernels of a CPU: which of the two computes a pass, by the width of the blocks.

Vectors run over channels where a pass writes blocks of a multiple of 16 of them, else over pixels.
Activations are fp32, fp16 or bf16; sums are in fp32. Results are equal bit for bit in any number
of threads. Arguments are those of operators/reference.py; `geometry` is (stride, padding,
dilation), and y or dx is empty, of the result's shape and order.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from sparse_kernels.cpu import channel_vectors, pixel_vectors

Ints = Sequence[int]
Index = Sequence[Tensor]
# In layers of so few channels, blocks so narrow take .3 to .5 of the dense layer's time by vectors
# over pixels, .5 to .85 over channels; of 64 channels both take the same.
FEW_CHANNELS, NARROW = 32, 16
# A linear layer is a convolution with this geometry.
POINTWISE = ((1, 1), (0, 0), (1, 1))


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    y: Tensor,
    index: Index,
    sizes: Ints,
    geometry: Sequence[Ints],
) -> Tensor:
    """Return the output [N, O, P, Q] of x [N, C, H, W], in the order of y."""
    return _kernel("forward", sizes).conv2d(x, values, bias, y, index, sizes, geometry)


def conv2d_input_grad(
    grad: Tensor, values: Tensor, dx: Tensor, index: Index, sizes: Ints, geometry: Sequence[Ints]
) -> Tensor:
    """Return the input gradient [N, C, H, W] of dy [N, O, P, Q], in the order of dx."""
    kernel = _kernel("input_grad", sizes)
    return kernel.conv2d_input_grad(grad, values, dx, index, sizes, geometry)


def conv2d_weight_grad(
    x: Tensor, grad: Tensor, index: Index, sizes: Ints, geometry: Sequence[Ints]
) -> Tensor:
    """Return dvalues [Z, BC, BO]; zero in unused slots and outside the weight."""
    return _kernel("weight_grad", sizes).conv2d_weight_grad(x, grad, index, sizes, geometry)


def linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, sizes: Ints) -> Tensor:
    """Return y [..., O] of x [..., C]."""
    y = x.new_empty((*x.shape[:-1], sizes[0]))
    conv2d(_one_row(x), values, bias, _one_row(y), index, sizes, POINTWISE)
    return y


def linear_input_grad(grad: Tensor, values: Tensor, index: Index, sizes: Ints) -> Tensor:
    """Return dx [..., C] of dy [..., O]."""
    dx = grad.new_empty((*grad.shape[:-1], sizes[1]))
    conv2d_input_grad(_one_row(grad), values, _one_row(dx), index, sizes, POINTWISE)
    return dx


def linear_weight_grad(x: Tensor, grad: Tensor, index: Index, sizes: Ints) -> Tensor:
    """Return dvalues [Z, BC, BO]; zero in unused slots and outside the weight."""
    return conv2d_weight_grad(_one_row(x), _one_row(grad), index, sizes, POINTWISE)


def _one_row(x: Tensor) -> Tensor:
    """View [..., C] as the pixels [1, C, 1, M] of one image, which a contiguous x is."""
    return x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


def runs_over_channels(pass_name: str, sizes: Ints) -> bool:
    """Return whether vectors of a pass, one of PASSES, run over channels, else over pixels."""
    out_channels, in_channels, _, _, bo, bc = sizes
    is_narrow = min(out_channels, in_channels) <= FEW_CHANNELS and max(bo, bc) <= NARROW
    return channel_vectors.supports(sizes, pass_name) and not is_narrow


def _kernel(pass_name: str, sizes: Ints) -> ModuleType:
    return channel_vectors if runs_over_channels(pass_name, sizes) else pixel_vectors
