"""What passes write by tile or share of their positions, and how it is put together.

Sums are taken in a fixed order, by programs that each own their results: they are the same at
every run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparse_kernels.registration import define
from sparse_kernels.triton.launch import launch
from sparse_kernels.triton.tiles import power_of_two

# Of the kernels: what they are in sums_kernels.py.
JOINED_TILES, JOINED_CHANNELS = 256, 16
LONG, SHORT = (8, 256), (256, 16)
ADDED = ("partial", "gradient", "tiles", "totals", "SPLITS", "ELEMENTS", "TILES", "VECTOR")


class Running(NamedTuple):
    """The running statistics of a batch norm: mean and variance [C], how many batches (a scalar).

    They move to those of a batch by `momentum`, the variance to the unbiased one.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor
    momentum: float


class TileSums(NamedTuple):
    """What a pass wrote by tile: float32 [tiles, 2, C]; the tiles have `positions` in all.

    They have a power of two each, as many as will do, and only the last one may have fewer.
    """

    sums: Tensor
    positions: int

    def totals(self) -> Tensor:
        """Return both sums over all tiles, [2, C]."""
        return added(None, torch.float32, self.sums)[1]

    def joined(self) -> TileSums:
        """Return means and biased variances of all tiles as those of one.

        Source: Chan, Golub and LeVeque 1979, "Updating formulae", which lose nothing to
        cancellation where the mean is large.
        """
        if len(self.sums) == 1:
            return self
        found = statistics(*self, None, None, 0.0, None, None, None, 0.0)
        return TileSums(found[None], self.positions)

    def batch_norm(
        self, weight: Tensor, bias: Tensor, eps: float, running: Running | None = None
    ) -> tuple[Tensor, ...]:
        """Return mean, variance, scale and shift [C] of a batch norm, scale * x + shift.

        Running statistics are moved in place, by the same kernel.
        """
        moved = (None, None, None, 0.0) if running is None else running
        with torch.no_grad():
            return statistics(*self, weight, bias, eps, *moved).unbind()


def added(
    partial: Tensor | None, dtype: torch.dtype, tiles: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the sums over the first dimension of two tensors, in one launch; either may be None.

    Args:
        partial: float32 [S, Z, BC, BO], few and long sums; or [Z, BC, BO], the sum itself.
        dtype: of the first sum.
        tiles: float32 [T, 2, C], many and short sums.
    """
    from sparse_kernels.triton import sums_kernels

    gradient = totals = None
    programs, arguments = 0, dict.fromkeys(ADDED)
    if partial is not None and partial.ndim == 3:
        gradient, partial = partial, None
    elif partial is not None:
        gradient = partial.new_empty(partial.shape[1:], dtype=dtype)
        elements = gradient.numel()
        arguments |= {"partial": partial, "gradient": gradient}
        arguments |= {"SPLITS": len(partial), "ELEMENTS": elements}
        programs += -(-elements // LONG[1])
    if tiles is not None:
        totals = tiles.new_empty(tiles.shape[1:])
        vector = totals.numel()
        arguments |= {"tiles": tiles, "totals": totals, "TILES": len(tiles), "VECTOR": vector}
        programs += -(-vector // SHORT[1])
    if programs:
        like = partial if tiles is None else tiles
        launch(like, sums_kernels.added, (programs,), **arguments, LONG=LONG, SHORT=SHORT)
    return gradient, totals


def _statistics(
    sums, positions, weight, bias, eps, running_mean, running_variance, batches, momentum
):
    from sparse_kernels.triton.sums_kernels import joined

    tiles, _, channels = sums.shape
    if running_mean is not None and not running_mean.is_inference():
        torch.autograd.graph.increment_version((running_mean, running_variance, batches))
    vectors = _vectors(sums, positions, weight)
    launch(
        sums,
        joined,
        (-(-channels // JOINED_CHANNELS),),
        partial=sums,
        vectors=vectors,
        weight=weight,
        bias=bias,
        running_mean=running_mean,
        running_variance=running_variance,
        batches=batches,
        M=positions,
        C=channels,
        SIZE=power_of_two(-(-positions // tiles)),
        TILES=tiles,
        eps=eps,
        momentum=momentum,
        SUMS=JOINED_TILES,
        BC=JOINED_CHANNELS,
    )
    return vectors


def _vectors(sums: Tensor, positions: int, weight: Tensor | None, *_: object) -> Tensor:
    return sums.new_empty((2 if weight is None else 4, sums.shape[2]))


# A row each for mean, variance and, with a weight, scale and shift.
statistics = define(
    "statistics",
    "(Tensor sums, SymInt positions, Tensor? weight, Tensor? bias, float eps, "
    "Tensor(a!)? running_mean, Tensor(b!)? running_variance, Tensor(c!)? batches, "
    "float momentum) -> Tensor",
    _statistics,
    _vectors,
)
