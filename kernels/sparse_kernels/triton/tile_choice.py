"""Which tile a launch runs with: the one being tried, the one tuned, or the table's."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_kernels.layout import block_grid
from sparse_kernels.measurements import Measurements, cache_path
from sparse_kernels.triton.launch import tma_fits
from sparse_kernels.triton.run_tiles import LENGTHS, WIDEST, RunTile, run_length
from sparse_kernels.triton.tiles import Tile

LARGEST = Tile(bm=1024, bk=256, warps=16, stages=10, tma=True)


class TunedRun(NamedTuple):
    """The runs of a launch of strips, in numbers alone, as a file has them; TAPS for none.

    bm to tma as of Tile; length, taps and strips as of RunTile.
    """

    bm: int
    bk: int
    warps: int
    stages: int
    tma: bool
    length: int
    taps: int
    strips: int

    @classmethod
    def of(cls, run: RunTile) -> "TunedRun":
        """Return it from a tile of the table."""
        return cls(*run.tile, run.length, run.taps, run.strips)

    @property
    def run(self) -> RunTile:
        """As the launchers take it."""
        return RunTile(self.length, Tile(*self[:5]), self.taps, self.strips)


# A tap at a time is faster than runs.
TAPS = TunedRun(0, 0, 0, 0, False, 0, 0, 0)
LARGEST_RUN = TunedRun(*LARGEST, length=max(LENGTHS), taps=WIDEST, strips=4)
Tuned = Tile | TunedRun


class Launch(NamedTuple):
    """A launch, as the tuner notes it.

    key: of launch_key; image: the first that it reads; fits: whether it can run with a tile as it
    is, which for the variant that TMA feeds depends on all that it would move; run: the table's, of
    a launch of strips.
    """

    key: str
    image: Tensor
    fits: Callable[[Tuned], bool]
    run: RunTile | None = None

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

    tiles: Mapping[str, Tuned | None] = MappingProxyType({})
    every: Tile | None = None
    noted: list[Launch] | None = None


@contextmanager
def forced(tiles: Tile | Mapping[str, Tuned | None] | None = None) -> Iterator[list[Launch]]:
    """Within, launches use a tile (those of runs do not), or those of these keys these tiles.

    Yields all launches.

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
def tuned_tiles(device: torch.device) -> Measurements[Tuned]:
    """Return the tiles that the tuner found for a device; those of the interpreter are apart."""
    import triton

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    return Measurements(cache_path("tiles", gpu, f"triton{triton.__version__}"), checked_tile)


def checked_tile(numbers: Sequence[Any]) -> Tuned:
    """Return a tile or runs from a file; TypeError or ValueError if it is neither."""
    kind, largest = (Tile, LARGEST) if len(numbers) <= len(LARGEST) else (TunedRun, LARGEST_RUN)
    tile = kind(*numbers)
    for name, value, most in zip(kind._fields, tile, largest):
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

    def fits(tile: Tuned) -> bool:
        return isinstance(tile, Tile) and (not tile.tma or (whole and tma_fits(tile, *images)))

    known = _tried(key, Launch("", images[0], fits))
    tried = _State.every or (known if isinstance(known, Tile) else None)
    for tile in (tried, table(True)):
        if tile is not None and tile.tma and fits(tile):
            return tile
    return tried if tried is not None and not tried.tma else table(False)


def choose_run(
    key: Callable[[], str],
    table: Callable[[bool], RunTile | None],
    width: int,
    whole: bool,
    images: Sequence[Tensor],
    divides: bool = False,
    allowed: Callable[[RunTile], bool] = lambda run: True,
) -> RunTile | None:
    """Return the runs of a launch, whose tile's `tma` says which variant works with them, or None.

    Args:
        key: launch_key, called only where there are tuned tiles.
        table: the table's for the variant that TMA feeds (True) or for pointers.
        width: of the images that are written, or of dy.
        whole: the block and the values are such that TMA can move them.
        images: what TMA would move besides.
        divides: runs must not reach past the end of a row.
        allowed: what else must hold.
    """

    def fitted(run: RunTile) -> RunTile | None:
        run = run._replace(length=run_length(width, run.length, divides))
        fits = not run.tile.tma or (whole and tma_fits(run.tile, *images))
        return run if run.length and fits and allowed(run) else None

    def fits(tile: Tuned) -> bool:
        return isinstance(tile, TunedRun) and (tile == TAPS or fitted(tile.run) == tile.run)

    found = (fitted(run) for run in (table(True), table(False)) if run is not None)
    default = next((run for run in found if run is not None), None)
    if default is None:
        return None
    tried = _tried(key, Launch("", images[0], fits, default))
    if tried == TAPS:
        return None
    return (fitted(tried.run) if isinstance(tried, TunedRun) else None) or default


def _tried(key: Callable[[], str], launch: Launch) -> Tuned | None:
    """Return what is tried or tuned for a launch, without its key yet, and note it."""
    tuned = tuned_tiles(launch.image.device).entries
    name = key() if tuned or _State.noted is not None else ""
    if _State.noted is not None:
        _State.noted.append(launch._replace(key=name))
    return (_State.tiles if name in _State.tiles else tuned).get(name)


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
