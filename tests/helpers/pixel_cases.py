"""Drawn layers for the kernel over pixels, beside the dense operator in float64.

Every tensor lies between margins of NaN (lists of blocks: of numbers far outside the layer), values
outside the weight and entries of unused slots are junk, results are NaN before they are written.
"""

import random
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_kernels import BlockLayout
from sparse_kernels.cpu import pixel_vectors
from sparse_kernels.memory_order import ORDERS, in_order

MARGIN = 64
FAR = 1 << 30


class Case(NamedTuple):
    """A layer and its images."""

    images: int
    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    block: tuple[int, int]
    geometry: tuple
    density: float
    order: str = "channels_last"
    unused: int = 0
    bias: bool = True


def draw(seed: int) -> Case:
    """Return a small case with at least one pixel of output."""
    rng = random.Random(seed)
    while True:
        geometry = tuple(
            (rng.choice(choices), rng.choice(choices))
            for choices in ((1, 1, 2, 3), (0, 1, 1, 2, 4), (1, 1, 2, 3))
        )
        taps = rng.choice([(1, 1), (3, 3), (3, 3), (2, 3), (1, 4), (5, 2)])
        size = (rng.choice([1, 2, 3, 5, 8, 13, 17]), rng.choice([1, 2, 4, 7, 8, 12, 19]))
        _, padding, dilation = geometry
        if all(size[i] + 2 * padding[i] > dilation[i] * (taps[i] - 1) for i in (0, 1)):
            break
    sides = [1, 1, 2, 4, 8, 8, 16, 64, 3, 6]
    return Case(
        rng.choice([1, 1, 2, 3, 5, 8, 16, 17, 33]),
        (rng.choice([1, 3, 8, 17, 40, 70]), rng.choice([1, 2, 8, 19, 33, 64]), *taps),
        size,
        (rng.choice(sides), rng.choice(sides)),
        geometry,
        rng.choice([0.02, 0.1, 0.3, 1.0]),
        rng.choice(list(ORDERS)),
        rng.choice([0, 0, 7]),
        rng.random() < 0.5,
    )


def guarded(x: Tensor, junk: float = float("nan")) -> Tensor:
    """Return x, in its order in memory, between margins of junk."""
    flat = x.as_strided((x.numel(),), (1,))
    room = flat.new_full((x.numel() + 2 * MARGIN,), junk)
    room[MARGIN:-MARGIN] = flat
    return room[MARGIN:-MARGIN].as_strided(x.shape, x.stride(), MARGIN)


def margins_are_kept(x: Tensor) -> bool:
    """Whether nothing was written around what `guarded` returned for NaN."""
    room = x.as_strided((x.numel() + 2 * MARGIN,), (1,), 0)
    return bool(torch.cat([room[:MARGIN], room[-MARGIN:]]).isnan().all())


class Layer:
    """A case with its tensors, the kernel's results and the dense operator's."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case, generator = case, torch.Generator().manual_seed(seed)
        rows, columns = case.shape[:2]
        block = tuple(min(b, -(-n // 16) * 16) for b, n in zip(case.block, case.shape))
        grid = (-(-rows // block[0]), -(-columns // block[1]), *case.shape[2:])
        total = torch.Size(grid).numel()
        active = max(1, round(case.density * total))
        ids = torch.randperm(total, generator=generator)[:active]
        slots = torch.cat([ids, ids.new_full((case.unused,), total)])
        slots = slots[torch.randperm(len(slots), generator=generator)]
        layout = BlockLayout(case.shape, block, slots, active=active)
        self.sizes = (*case.shape, *layout.block)
        self.index = [guarded(t, FAR) for t in layout.tensors()]
        values = torch.randn(len(slots), block[1], block[0], generator=generator)
        self.weight, self.mask = (
            _dense(v, slots, grid, case.shape) for v in (values, torch.ones_like(values))
        )
        inside = _dense_slots(self.mask.isnan(), slots, grid, block)
        values[~inside] = float("nan")
        self.inside, self.values = inside, guarded(values)
        x = torch.randn(case.images, columns, *case.size, generator=generator)
        self.x = guarded(in_order(x, case.order))
        self.bias = guarded(torch.randn(rows, generator=generator)) if case.bias else None
        like = self.dense(torch.float32)[0]
        grad = torch.randn(like.shape, generator=generator)
        self.grad = guarded(in_order(grad, case.order))

    def dense(self, dtype: torch.dtype, change=lambda t: t) -> list[Tensor]:
        """Return y, dx and the gradient of the active weights, of tensors that are changed."""
        x, weight = (change(_plain(t, dtype)).requires_grad_() for t in (self.x, self.weight))
        bias = None if self.bias is None else change(self.bias.to(dtype))
        stride, (high, wide), dilation = self.case.geometry
        # oneDNN (3.12) crashes where it pads more than a tap reads.
        padded = torch.nn.functional.pad(x, (wide, wide, high, high))
        y = torch.nn.functional.conv2d(padded, weight, bias, stride, 0, dilation)
        if not hasattr(self, "grad"):
            return [y.detach()]
        dx, dw = torch.autograd.grad(y, (x, weight), change(_plain(self.grad, dtype)))
        return [y.detach(), dx, dw * self.mask]

    def run(self) -> list[Tensor]:
        """Return y, dx and dvalues by the kernel."""
        rest = self.index, self.sizes, self.case.geometry
        y, dx = (guarded(torch.full_like(t, float("nan"))) for t in (self.grad, self.x))
        outcome = [
            pixel_vectors.conv2d(self.x, self.values, self.bias, y, *rest),
            pixel_vectors.conv2d_input_grad(self.grad, self.values, dx, *rest),
            pixel_vectors.conv2d_weight_grad(self.x, self.grad, *rest),
        ]
        for written, result in zip((y, dx), outcome):
            assert margins_are_kept(written)
            assert written.stride() == result.stride()
        return outcome

    def check(self) -> None:
        """Compare all three with the dense operator: at most twice its error in fp32.

        Where that is nearly none by chance, as of a few products: a rounding of what was summed.
        """
        ours, exact, single = self.run(), self.dense(torch.float64), self.dense(torch.float32)
        assert not ours[2][~self.inside].any()
        ours[2] = self.to_dense(ours[2])
        summed = self.dense(torch.float64, torch.abs)
        for what, a, b, c, size in zip(("y", "dx", "dvalues"), ours, exact, single, summed):
            allowed = max(2 * (c - b).norm(), 2e-7 * size.norm())
            assert (a - b).norm() <= allowed, (what, self.case)

    def to_dense(self, dvalues: Tensor) -> Tensor:
        block = self.sizes[4:]
        grid = (*(-(-n // b) for n, b in zip(self.sizes, block)), *self.sizes[2:4])
        return _dense(dvalues, self.index[0].long(), grid, self.case.shape)


def error(x: Tensor, exact: Tensor) -> float:
    """Return the error relative to the norm; NaN counts as infinite."""
    found = float((x.double() - exact).norm() / exact.norm().clamp(min=1e-30))
    return found if found == found else float("inf")


def _plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy in order, as some of PyTorch's convolutions want it."""
    return x.to(dtype).clone(memory_format=torch.contiguous_format)


def _dense(values: Tensor, slots: Tensor, grid, shape) -> Tensor:
    bc, bo = values.shape[1:]
    blocks = values.new_zeros((torch.Size(grid).numel() + 1, bc, bo))
    blocks[slots.long()] = values
    weight = blocks[:-1].view(*grid, bc, bo).permute(0, 5, 1, 4, 2, 3)
    return weight.reshape(grid[0] * bo, grid[1] * bc, *grid[2:])[: shape[0], : shape[1]]


def _dense_slots(outside: Tensor, slots: Tensor, grid, block) -> Tensor:
    """Return which of values [Z, BC, BO] lie in the weight and in a used slot."""
    bo, bc = block
    weight = outside.new_zeros((grid[0] * bo, grid[1] * bc, *grid[2:]))
    weight[: outside.shape[0], : outside.shape[1]] = True
    blocks = weight.view(grid[0], bo, grid[1], bc, *grid[2:]).permute(0, 2, 4, 5, 3, 1)
    blocks = blocks.reshape(-1, bc, bo)
    return torch.cat([blocks, torch.zeros_like(blocks[:1])])[slots.long()]
