"""Which tile a launch runs with: the one being tried, the one tuned, or the table's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from sparse_kernels.launch import rows_fit
from sparse_kernels.layout import block_grid
from sparse_kernels.tile_cache import cache_of
from sparse_kernels.tiles import Tile


class _State:
    """The tile that the tuner tries, and where it notes what is launched."""

    forced: Tile | None = None
    noted: list[str] | None = None


@contextmanager
def forced(tile: Tile | None) -> Iterator[list[str]]:
    """Within, every launch uses `tile` (None: what it would use anyway); yields their keys."""
    before = _State.forced, _State.noted
    _State.forced, _State.noted = tile, []
    try:
        yield _State.noted
    finally:
        _State.forced, _State.noted = before


def choose(key: str, table: Callable[[bool], Tile], whole: bool, images: Sequence[Tensor]) -> Tile:
    """Return the tile of a launch, whose `rows` says which variant runs.

    Args:
        key: launch_key, called only where there are tuned tiles.
        table: the table's tile for the rows variant (True) or for pointers.
        whole: the block and the values are such that TMA can move them.
        images: what TMA would move besides.
    """
    if _State.noted is not None:
        _State.noted.append(key())
    cache = cache_of(images[0].device)
    tried = _State.forced or (cache.get(key()) if cache.tiles else None)
    for tile in (tried, table(True)):
        if tile is not None and tile.rows and whole and rows_fit(tile, *images):
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
