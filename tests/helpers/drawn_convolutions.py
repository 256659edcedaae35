"""Convolutions of any geometry, drawn by a seed, whose tensors have guards of NaN around them."""

import random
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_kernels.layout import BlockLayout, block_grid, clamp_block
from sparse_kernels.memory_order import ORDERS, order_of
from sparse_kernels.operators.convolution import output_image
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks

# Floats before and behind a guarded tensor.
GUARD = 64
SIDES = (1, 4, 8, 16, 16, 32, 32, 48, 64, 96, 128)


@dataclass
class Convolution:
    """Operands of the three passes and, in float64, their results."""

    layout: BlockLayout
    geometry: tuple
    x: Tensor
    values: Tensor
    bias: Tensor | None
    grad: Tensor
    sizes: tuple

    @property
    def lists(self):
        return self.layout.tensors(), self.layout.sizes(), self.geometry

    def dense(self, dtype=torch.float64):
        """Return y, dx and dvalues by the dense operator."""
        index, sizes, (stride, padding, dilation) = self.lists
        outside = self.layout.outside()
        values = self.values if outside is None else self.values.masked_fill(outside, 0)
        weight = scatter_blocks(values, index, sizes).to(dtype).requires_grad_()
        x = self.x.detach().clone().to(dtype).requires_grad_()
        # oneDNN 3.12 crashes with a bias where a 1x1 kernel has padding.
        y = F.conv2d(x, weight, None, stride, padding, dilation)
        if self.bias is not None:
            y = y + self.bias.to(dtype)[:, None, None]
        dx, dweight = torch.autograd.grad(y, (x, weight), self.grad.to(dtype))
        return y.detach(), dx, gather_blocks(dweight, index, sizes)


def in_type(convolution: Convolution, dtype: torch.dtype) -> Convolution:
    """Return a convolution whose operands are rounded to a data type, in guards of their own."""

    def rounded(t):
        if t is not None:
            return guarded(t.shape, order_of(t) if t.ndim == 4 else "channels_last", t, dtype)

    names = ("x", "values", "bias", "grad")
    return replace(convolution, **{name: rounded(getattr(convolution, name)) for name in names})


def guarded(shape, order="channels_last", content=None, dtype=torch.float32) -> Tensor:
    """Return a tensor between guards of NaN, random unless its content is given."""
    dims = ORDERS[order] if len(shape) == 4 else tuple(range(len(shape)))
    inner = [shape[d] for d in dims]
    count = torch.Size(inner).numel()
    memory = torch.full((count + 2 * GUARD,), float("nan"), dtype=dtype)
    part = memory[GUARD : GUARD + count].view(inner)
    tensor = part.permute([dims.index(d) for d in range(len(shape))])
    return tensor.copy_(torch.randn(shape) if content is None else torch.as_tensor(content))


def guards_are_whole(tensor: Tensor) -> bool:
    """Return whether nothing was written beside a guarded tensor."""
    memory = tensor.new_empty(0).set_(tensor.untyped_storage())
    return bool(memory[:GUARD].isnan().all() and memory[-GUARD:].isnan().all())


def draw_layout(draw: random.Random, shape, block, taps="each") -> BlockLayout:
    """Return a layout of some blocks, often with unused slots, empty rows and columns."""
    whole = BlockLayout(shape, block, torch.arange(1)) if taps == "each" else None
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    if taps != "each":
        grid = block_grid(shape, block)
        groups = torch.rand(*grid[: 3 if taps == "row" else 2], generator=generator)
        mask = (groups < draw.random()) | (groups == groups.min())
        mask = mask.view(*mask.shape, *[1] * (4 - mask.ndim)).expand(grid)
        return BlockLayout.from_mask(mask, shape, block, taps)
    total = whole.total
    slots = draw.randint(1, total)
    ids = torch.randperm(total, generator=generator)[:slots]
    unused = draw.choice([0, 0, draw.randrange(slots)])
    ids[torch.randperm(slots, generator=generator)[:unused]] = total
    return BlockLayout(shape, block, ids, slots - unused)


def draw_convolution(seed: int, sides=SIDES, most_channels=140, longest=(9, 9)) -> Convolution:
    """Return a convolution with a side of its blocks 16 wide or wider, its images drawn, too."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        image = [draw.randint(-(-most // 9), most) for most in longest]
        taps = [draw.randint(1, 4) for _ in "hw"]
        stride, dilation = ([draw.choice([1, 1, 2, 3]) for _ in "hw"] for _ in "sd")
        padding = [draw.randint(0, 4) for _ in "hw"]
        out_image = output_image(image, taps, stride, padding, dilation)
        channels = [draw.randint(1, most_channels) for _ in "oc"]
        block = clamp_block([draw.choice(sides) for _ in "oc"], *channels)
        if min(out_image) > 0 and any(side % 16 == 0 for side in block):
            break
    shape, images = (*channels, *taps), draw.choice([1, 2, 5])
    layout = draw_layout(draw, shape, block, draw.choice(["each", "each", "row", "all"]))
    orders = [draw.choice(["channels_last", "channels_last", "rows", "contiguous"]) for _ in "xy"]
    values = guarded((layout.slots, *reversed(layout.block)))
    if (outside := layout.outside()) is not None:
        values.masked_fill_(outside, float("nan"))
    return Convolution(
        layout,
        (tuple(stride), tuple(padding), tuple(dilation)),
        guarded((images, channels[1], *image), orders[0]),
        values,
        draw.choice([None, guarded((channels[0],))]),
        guarded((images, channels[0], *out_image), orders[1]),
        (images, *shape, *image),
    )
