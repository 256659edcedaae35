"""What was measured on this machine and decides what `auto` runs, to be kept with a run.

A run that is continued, or shared by several processes, then takes the same kernels everywhere,
whatever has been measured meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sparse_kernels.dispatch.cost_model import kept_limits
from sparse_kernels.triton.tile_cache import cache_of, checked_tile

Picks = Mapping[str, Mapping[str, Sequence[Any]]]


def measured_picks(device: torch.device) -> Picks:
    """Return the tuned tiles of a GPU, or the break-even densities of a CPU, as JSON holds them.

    They stand under the name of the file that this machine keeps them in, which names hardware and
    versions.
    """
    if device.type == "cuda":
        cache = cache_of(device)
        return {cache.path.name: {key: list(tile) for key, tile in cache.tiles.items()}}
    limits = kept_limits()
    return {limits.path.name: {key: list(found) for key, found in limits.numbers.items()}}


@contextmanager
def with_picks(device: torch.device, kept: Picks) -> Iterator[None]:
    """Run what is inside with what measured_picks returned, and nothing that was measured since.

    What other hardware or other versions measured says nothing here and is left out.

    Raises:
        TypeError, ValueError or AttributeError: it is something else.
    """
    before = measured_picks(device)
    _use(device, {**before, **kept})
    try:
        yield
    finally:
        _use(device, before)


def _use(device: torch.device, picks: Picks) -> None:
    if device.type == "cuda":
        cache = cache_of(device)
        found = picks[cache.path.name]
        cache.tiles = {key: checked_tile(tile) for key, tile in found.items()}
        return
    limits = kept_limits()
    found = picks[limits.path.name]
    limits.numbers = {key: [float(number)] for key, (number,) in found.items()}
