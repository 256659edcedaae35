"""How activations lie in memory: three orders of the same logical [N, C, H, W].

`rows` is (h, w, n, c): channels innermost, images next, so that a tap of a convolution moves a
whole tile of images by one scalar. `channels_last` is (n, h, w, c), `contiguous` (n, c, h, w).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ORDERS = {
    "contiguous": (0, 1, 2, 3),
    "channels_last": (0, 2, 3, 1),
    "rows": (2, 3, 0, 1),
}


def order_of(x: Tensor) -> str:
    """Return the order of x [N, C, H, W]; "contiguous" for one that has none of the three.

    Strides of dimensions of size 1 say nothing; where several orders fit, the first one counts.
    """
    for name, order in ORDERS.items():
        if x.permute(order).is_contiguous():
            return name
    return "contiguous"


def empty_images(like: Tensor, shape: Sequence[int], order: str) -> Tensor:
    """Return an empty [N, C, H, W] in an order, with the dtype and device of `like`."""
    dimensions = ORDERS[order]
    empty = like.new_empty([shape[d] for d in dimensions])
    return empty.permute([dimensions.index(d) for d in range(4)])


def in_order(x: Tensor, order: str) -> Tensor:
    """Return x [N, C, H, W] in an order, copied only if it is in another."""
    dimensions = ORDERS[order]
    ordered = x.permute(dimensions)
    if ordered.is_contiguous():
        return x
    return ordered.contiguous().permute([dimensions.index(d) for d in range(4)])


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format that PyTorch's own operators should be given for x."""
    return torch.channels_last if order_of(x) == "channels_last" else torch.contiguous_format
