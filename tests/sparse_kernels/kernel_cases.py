"""What the tests of the Triton kernels share: cases, layouts and guards."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sparse_kernels import BlockLayout, tiles
from sparse_kernels.activation import ORDERS, order_of
from sparse_kernels.layout import block_grid

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

    @property
    def output(self) -> tuple[int, ...]:
        sizes = zip(self.image, self.kernel, self.stride, self.padding, self.dilation)
        return tuple((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in sizes)


def use_small_tiles(monkeypatch) -> None:
    """Let small batches reach every variant in the interpreter."""
    for name in ("gather", "weight_grad"):
        tile = getattr(tiles, f"{name}_tile")
        small = lambda *a, tile=tile: tile(*a)._replace(bm=TILE)  # noqa: E731
        monkeypatch.setattr(f"sparse_kernels.{name}.{name}_tile", small)


def guarded(x: torch.Tensor) -> torch.Tensor:
    """Return a copy of x, in its order, between NaNs that a read outside would bring in."""
    dimensions = ORDERS[order_of(x)] if x.ndim == 4 else tuple(range(x.ndim))
    ordered = x.permute(dimensions)
    room = torch.full((x.numel() + 2 * 512,), math.nan, dtype=x.dtype, device=x.device)
    inner = room[512 : 512 + x.numel()].view(ordered.shape)
    inner.copy_(ordered)
    return inner.permute([dimensions.index(d) for d in range(x.ndim)])


def make_layout(case: Case, shape: tuple[int, ...]) -> BlockLayout:
    """Return random blocks: the first row of blocks empty, the last one full if density says."""
    grid = block_grid(shape, case.block)
    mask = torch.rand(grid) < case.density
    if 0 < case.density < 1 and grid[0] > 1:
        mask[0] = False
    mask[-1, 0, 0, 0] = True
    ids = mask.flatten().nonzero().flatten()
    padded = F.pad(ids, (0, case.unused), value=mask.numel())
    return BlockLayout(shape, case.block, padded, active=len(ids)).to(DEVICE)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm().clamp(min=1e-30))
