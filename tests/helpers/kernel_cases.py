"""What the tests of the Triton kernels share: cases, layouts and guards."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sparse_kernels import BlockLayout
from sparse_kernels.index_tensors import forward_index, input_grad_index, slot_index, strip_lists
from sparse_kernels.layout import block_grid
from sparse_kernels.memory_order import ORDERS, order_of
from sparse_kernels.triton import tiles
from sparse_kernels.triton.run_tiles import RunTile
from sparse_kernels.triton.tiles import Tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's bf16 dot is wrong; a GPU's is not.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
# Positions of a tile that TMA moves: as the table has them, and in the interpreter small ones.
TILE = 128 if torch.cuda.is_available() else 16
# What rounding the exact result to the data type costs: both sides may be that far off.
FLOOR = {torch.float32: 2e-7, torch.float16: 5e-4, torch.bfloat16: 4e-3}


@dataclass(frozen=True)
class Case:
    """One convolution, by TMA unless its batch or order says no; density 0 means a single block."""

    batch: int = TILE
    channels: tuple[int, int] = (48, 32)
    image: tuple[int, int] = (4, 3)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    block: tuple[int, int] = (16, 16)
    density: float = 0.4
    order: str = "rows"
    unused: int = 0
    bias: bool = True
    strips: bool = False

    @property
    def output(self) -> tuple[int, ...]:
        sizes = zip(self.image, self.kernel, self.stride, self.padding, self.dilation)
        return tuple((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in sizes)


CASES = {
    "plain": Case(),
    "tma, several tiles": Case(batch=2 * TILE, image=(2, 2), block=(32, 16)),
    "odd batch": Case(batch=5),
    "channels_last": Case(batch=3, order="channels_last"),
    "contiguous": Case(batch=3, order="contiguous"),
    "strided, dilated, not square": Case(
        batch=3, image=(7, 6), kernel=(3, 2), stride=(2, 3), padding=(2, 0), dilation=(1, 2)
    ),
    "strided in rows": Case(stride=(2, 2), image=(5, 4)),
    "ragged": Case(channels=(37, 21), batch=4),
    "ragged rows": Case(channels=(40, 24), block=(32, 16)),
    "wide block": Case(channels=(128, 128), block=(128, 64), kernel=(1, 1), padding=(0, 0)),
    "tall block": Case(channels=(128, 64), block=(64, 128), batch=3, kernel=(1, 2), image=(2, 3)),
    "one block": Case(density=0.0),
    "full": Case(density=1.0, kernel=(1, 1), padding=(0, 0)),
    "unused slots": Case(unused=3, bias=False),
    "three channels": Case(channels=(16, 3), order="channels_last", batch=2),
}

FUSED_CASES = {
    "tma": Case(batch=2 * TILE, image=(3, 2), block=(32, 16)),
    "odd batch": Case(batch=5, image=(4, 3)),
    "channels_last": Case(batch=3, order="channels_last"),
    "contiguous": Case(batch=3, order="contiguous"),
    "strided, dilated, not square": Case(
        batch=3, image=(7, 6), kernel=(3, 2), stride=(2, 3), padding=(2, 0), dilation=(1, 2)
    ),
    "ragged": Case(channels=(37, 21), batch=4),
    "ragged rows": Case(channels=(40, 24), block=(32, 16)),
    "no power of two": Case(
        channels=(48, 48), block=(48, 48), batch=3, kernel=(1, 1), padding=(0, 0)
    ),
    "unused slots": Case(unused=3, bias=False),
}


def use_small_tiles(monkeypatch) -> None:
    """Let small batches reach every variant in the interpreter, in several shares."""
    for name in ("gather", "weight_grad"):
        tile = getattr(tiles, f"{name}_tile")
        small = lambda *a, tile=tile: tile(*a)._replace(bm=TILE)  # noqa: E731
        monkeypatch.setattr(f"sparse_kernels.triton.{name}.{name}_tile", small)
        monkeypatch.setattr(f"sparse_kernels.triton.run_{name}.run_{name}_tile", _small_run)
    for name in ("weight_grad", "run_weight_grad"):
        monkeypatch.setattr(f"sparse_kernels.triton.{name}.count_shares", _some_shares)


def _small_run(arch, itemsize, exact, first, second, taps, fused, tma) -> RunTile:
    """Return the longest runs, by few warps, and taps that do not divide a wide kernel's.

    Three strips share a program, which most groups are not full of.
    """
    return RunTile(8, Tile(TILE, min(16, first & -first), 4, 3, tma), min(taps, 4), 3)


def _some_shares(programs: int, steps: int, *_: int) -> int:
    return max(1, min(steps, -(-16 // programs)))


def guarded(x: torch.Tensor) -> torch.Tensor:
    """Return a copy of x, in its order, between NaNs that a read outside would bring in."""
    dimensions = ORDERS[order_of(x)] if x.ndim == 4 else tuple(range(x.ndim))
    ordered = x.permute(dimensions)
    room = torch.full((x.numel() + 2 * 512,), math.nan, dtype=x.dtype, device=x.device)
    inner = room[512 : 512 + x.numel()].view(ordered.shape)
    inner.copy_(ordered)
    return inner.permute([dimensions.index(d) for d in range(x.ndim)])


class Strips(BlockLayout):
    """Blocks whose slots are strips, with all lists that a GPU has."""

    def tensors(self) -> list[torch.Tensor]:
        ids, *_ = super().tensors()
        strips = strip_lists(ids, self.grid)[0]
        sizes = [*self.shape[:3], 1, *self.block]
        read = (forward_index, input_grad_index, slot_index)
        lists = [t for of_pass in read for t in of_pass([ids], self.sizes())]
        of_strips = [t.short() for of_pass in read for t in of_pass([strips], sizes)]
        return [ids, *lists, strips, *of_strips]


def make_layout(case: Case, shape: tuple[int, ...]) -> BlockLayout:
    """Return random blocks: the first row of blocks empty, the last one full if density says."""
    if case.strips:
        return _make_strips(case, shape)
    grid = block_grid(shape, case.block)
    mask = torch.rand(grid) < case.density
    if 0 < case.density < 1 and grid[0] > 1:
        mask[0] = False
    mask[-1, 0, 0, 0] = True
    ids = mask.flatten().nonzero().flatten()
    padded = F.pad(ids, (0, case.unused), value=mask.numel())
    return BlockLayout(shape, case.block, padded, active=len(ids)).to(DEVICE)


def _make_strips(case: Case, shape: tuple[int, ...]) -> BlockLayout:
    """Return random strips in slots in no order."""
    *grid, taps = block_grid(shape, case.block)
    mask = torch.rand(grid) < case.density
    if 0 < case.density < 1 and grid[0] > 1:
        mask[0] = False
    mask[-1, 0, 0] = True
    strips = F.pad(mask.flatten().nonzero().flatten(), (0, case.unused), value=mask.numel())
    strips = strips[torch.randperm(len(strips))]
    ids = (strips[:, None] * taps + torch.arange(taps)).flatten()
    return Strips(shape, case.block, ids, active=int(mask.sum()) * taps).to(DEVICE)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm().clamp(min=1e-30))
