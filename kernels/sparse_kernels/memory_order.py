"""How activations lie in memory: three orders of the same logical [N, C, H, W].

"rows" is HWNC, (h, w, n, c): channels innermost, images next, so that a tap of a convolution moves
a whole tile of images by one scalar. "channels_last" is (n, h, w, c), "contiguous" (n, c, h, w).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels.transforms import is_transformed

ORDERS = {
    "contiguous": (0, 1, 2, 3),
    "channels_last": (0, 2, 3, 1),
    "rows": (2, 3, 0, 1),
}


def order_of(x: Tensor) -> str:
    """Return the order of x [N, C, H, W]; "contiguous" for one that has none of the three.

    Strides of dimensions of size 1 say nothing, and where several orders fit, the first one counts;
    but images of one channel are channels_last if `to(memory_format=...)` has made them so.
    """
    if x.is_contiguous():  # which is quicker than to permute
        _, channels, *image = x.shape
        is_made_so = channels == 1 and x.stride(1) == 1 and image != [1, 1]
        return "channels_last" if is_made_so else "contiguous"
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


def channels_last(x: Tensor) -> Tensor:
    """Return x [N, C, H, W] as images that order_of calls channels_last, copied only if need be.

    Of one channel, too, by their strides.
    """
    if x.shape[1] == 1:
        return x.contiguous().squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2)
    return in_order(x, "channels_last")


def library_order(x: Tensor) -> Tensor:
    """Return x [N, C, H, W] as PyTorch's own convolutions want it: HWNC becomes channels_last.

    Their kernels for HWNC would be those for contiguous images, and copy x to that order.
    """
    return in_order(x, "channels_last") if order_of(x) == "rows" else x


def by_library(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return run(x), a convolution by PyTorch's own kernels; of x in HWNC, in HWNC.

    x and the result are copied once on the way there and back, and so are their gradients.
    """
    if order_of(x) != "rows":
        return run(x)
    return reordered(run(reordered(x, "channels_last", "rows")), "rows", "channels_last")


def reordered(x: Tensor, order: str, back: str) -> Tensor:
    """Return x [N, C, H, W] in an order, whose gradient is brought into the order `back`."""
    if x.permute(ORDERS[order]).is_contiguous():
        return x
    return in_order(x, order) if is_transformed() else _Reordered.apply(x, order, back)


class _Reordered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: str, back: str) -> Tensor:
        ctx.back = back
        y = in_order(x, order)
        # No view to autograd, which lets no ReLU change a view of a function's in place.
        return torch.ops.aten._unsafe_view(y, y.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        return in_order(grad, ctx.back), None, None


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format that PyTorch's own operators should be given for x."""
    return torch.channels_last if order_of(x) == "channels_last" else torch.contiguous_format
