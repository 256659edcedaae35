"""Which tile a launch runs with: the one being tried, the one tuned, or the table's."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_kernels.layout import block_grid
from sparse_kernels.measurements import Measurements, cache_path
from sparse_kernels.triton.launch import tma_fits
from sparse_kernels.triton.run_tiles import RunTile, run_length
from sparse_kernels.triton.tiles import Tile

LARGEST = Tile(bm=1024, bk=256, warps=16, stages=10, tma=True)


class Launch(NamedTuple):
    """A launch, as the tuner notes it.

    key: of launch_key; image: the first that it reads; fits: whether it can run with a tile as it
    is, which for the variant that TMA feeds depends on all that it would move.
    """

    key: str
    image: Tensor
    fits: Callable[[Tile], bool]

    def __repr__(self) -> str:
        return self.key

    @property
    def block(self) -> tuple[int, int]:
        """(BO, BC)."""
        sizes = next(part for part in self.key.split() if part.count("x") == 5)
        bo, bc = sizes.split("x")[4:]
        return int(bo), int(bc)

    @property
    def is_plain(self) -> bool:
        """Whether it does nothing but multiply."""
        return self.key.endswith(" plain")


class _State:
    """What the tuner tries and where it notes what is launched."""

    tiles: Mapping[str, Tile | None] = MappingProxyType({})
    every: Tile | None = None
    noted: list[Launch] | None = None


@contextmanager
def forced(tiles: Tile | Mapping[str, Tile | None] | None = None) -> Iterator[list[Launch]]:
    """Within, launches use a tile, or those of these keys these tiles; yields all launches.

    A key's None is the table's tile. Without any argument launches are only noted.
    """
    before = _State.tiles, _State.every, _State.noted
    _State.every = tiles if isinstance(tiles, Tile) else None
    _State.tiles = {} if tiles is None or isinstance(tiles, Tile) else tiles
    _State.noted = []
    try:
        yield _State.noted
    finally:
        _State.tiles, _State.every, _State.noted = before


@functools.cache
def tuned_tiles(device: torch.device) -> Measurements[Tile]:
    """Return the tiles that the tuner found for a device; those of the interpreter are apart."""
    import triton

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    return Measurements(cache_path("tiles", gpu, f"triton{triton.__version__}"), checked_tile)


def checked_tile(numbers: Sequence[int]) -> Tile:
    """Return a tile from a file; TypeError or ValueError if it is none."""
    tile = Tile(*numbers)
    for name, value, most in zip(Tile._fields, tile, LARGEST):
        if not isinstance(value, int) or not 0 <= value <= most:
            raise ValueError(f"{name} {value!r} is out of range")
    return tile._replace(tma=bool(tile.tma))


def choose(
    key: Callable[[], str], table: Callable[[bool], Tile], whole: bool, images: Sequence[Tensor]
) -> Tile:
    """Return the tile of a launch, whose `tma` says which variant runs.

    Args:
        key: launch_key, called only where there are tuned tiles.
        table: the table's tile for the variant that TMA feeds (True) or for pointers.
        whole: the block and the values are such that TMA can move them.
        images: what TMA would move besides.
    """

    def fits(tile: Tile) -> bool:
        return not tile.tma or (whole and tma_fits(tile, *images))

    tuned = tuned_tiles(images[0].device).entries
    name = key() if tuned or _State.noted is not None else ""
    if _State.noted is not None:
        _State.noted.append(Launch(name, images[0], fits))
    tried = _State.every or (_State.tiles if name in _State.tiles else tuned).get(name)
    for tile in (tried, table(True)):
        if tile is not None and tile.tma and fits(tile):
            return tile
    return tried if tried is not None and not tried.tma else table(False)


def choose_run(
    table: Callable[[bool], RunTile | None],
    width: int,
    whole: bool,
    images: Sequence[Tensor],
    divides: bool = False,
) -> RunTile | None:
    """Return the runs of a launch, whose tile's `tma` says which variant works with them, or None.

    Args:
        table: the table's for the variant that TMA feeds (True) or for pointers.
        width: of the images that are written, or of dy.
        whole: the block and the values are such that TMA can move them.
        images: what TMA would move besides.
        divides: runs must not reach past the end of a row.
    """
    for tma in (True, False):
        run = table(tma)
        if run is None:
            continue
        length = run_length(width, run.length, divides)
        if length and (not tma or (whole and tma_fits(run.tile, *images))):
            return run._replace(length=length)
    return None


def launch_key(
    name: str,
    src: Tensor,
    dst: Tensor,
    sizes: Sequence[int],
    slots: int,
    geometry: Sequence[int],
    fused: str,
) -> str:
    """Return what a tuned tile depends on, as text: sizes, order, data type, density to a half.

    Args:
        name: of the pass; src, dst: images it reads and writes (or reads both).
        sizes: BlockLayout.sizes(); slots: Z.
        geometry: stride, padding, dilation.
        fused: fusions, as text.
    """
    density = slots / math.prod(block_grid(sizes[:4], sizes[4:]))
    order = "rows" if src.stride(0) == src.shape[1] else "images"
    parts = (
        name,
        str(src.dtype).removeprefix("torch."),
        "x".join(map(str, sizes)),
        "x".join(map(str, src.shape)),
        "x".join(map(str, dst.shape)),
        "x".join(map(str, geometry)),
        order,
        f"d{round(2 * math.log2(density))}",
        fused,
    )
    return " ".join(parts)
