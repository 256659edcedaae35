"""Which tile a launch runs with: the one being tried, the one tuned, or the table's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from sparse_kernels.layout import block_grid
from sparse_kernels.triton.launch import rows_fit
from sparse_kernels.triton.tile_cache import cache_of
from sparse_kernels.triton.tiles import Tile


class Launch(NamedTuple):
    """A launch, as the tuner notes it.

    key: of launch_key; image: the first that it reads; fits: whether it can run with a tile as it
    is, which for the rows variant depends on all that TMA would move.
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


def choose(
    key: Callable[[], str], table: Callable[[bool], Tile], whole: bool, images: Sequence[Tensor]
) -> Tile:
    """Return the tile of a launch, whose `rows` says which variant runs.

    Args:
        key: launch_key, called only where there are tuned tiles.
        table: the table's tile for the rows variant (True) or for pointers.
        whole: the block and the values are such that TMA can move them.
        images: what TMA would move besides.
    """

    def fits(tile: Tile) -> bool:
        return not tile.rows or (whole and rows_fit(tile, *images))

    tuned = cache_of(images[0].device).tiles
    name = key() if tuned or _State.noted is not None else ""
    if _State.noted is not None:
        _State.noted.append(Launch(name, images[0], fits))
    tried = _State.every or (_State.tiles if name in _State.tiles else tuned).get(name)
    for tile in (tried, table(True)):
        if tile is not None and tile.rows and fits(tile):
            return tile
    return tried if tried is not None and not tried.rows else table(False)


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
