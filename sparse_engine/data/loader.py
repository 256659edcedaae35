"""Batches of image arrays: shuffled, cropped, flipped and normalised on the device they live on."""

import copy
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sparse_engine.data.arrays import ImageArrays, ImageFiles, stratified_split
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.errors import InputError

Split = TypeVar("Split", ImageArrays, ImageFiles)


class ArrayLoader:
    """Training batches of `arrays`, each a pure function of (seed, step).

    The images stay on `device` as uint8. Every epoch has its own order and its own crops and
    flips; images that do not fill a last batch sit that epoch out. InputError if `batch_size` is
    not between 1 and the number of images.
    """

    def __init__(
        self,
        arrays: ImageArrays,
        info: DatasetInfo,
        batch_size: int,
        device: torch.device | str,
        *,
        seed: int,
        augment: bool = True,
    ) -> None:
        self.steps_per_epoch = count_steps(len(arrays), batch_size)
        self.batch_size = batch_size
        self._arrays = arrays.to(device)
        self._info = info
        self._seed = seed
        self._augment = augment and info.augment
        self._normalise = Normaliser(info, device)
        self._epoch = -1  # of self._plan, which the first step draws
        self._share = slice(None)

    def of(self, share: slice) -> "ArrayLoader":
        """Return a loader of some of each batch's images."""
        loader = copy.copy(self)
        loader._share, loader._epoch = share, -1
        return loader

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return images float32 [B, C, H, W], normalised, and labels int64 [B] of a step from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        plan = self._plan_of(epoch)
        chosen = plan.order[place]
        images = self._arrays.images[chosen]
        if self._augment:
            images = crop_and_flip(images, plan.shifts[:, place], plan.flips[place], self._info)
        return self._normalise(images), self._arrays.labels[chosen]

    def _plan_of(self, epoch: int) -> "_EpochPlan":
        # Drawn and moved once an epoch: a copy at every step would wait for the device's queue.
        if self._epoch != epoch:
            shape, device = (self.steps_per_epoch, self.batch_size), self._arrays.images.device
            plan = _draw_plan(self._seed, epoch, len(self._arrays), shape, self._info)
            own = (part[..., self._share].to(device, non_blocking=True) for part in plan)
            self._epoch, self._plan = epoch, _EpochPlan(*own)
        return self._plan


class _EpochPlan(NamedTuple):
    """Image indices [S, B], shifts down and right in pixels [2, S, B] and flips bool [S, B]."""

    order: Tensor
    shifts: Tensor
    flips: Tensor


def _draw_plan(
    seed: int, epoch: int, images: int, shape: tuple[int, int], info: DatasetInfo
) -> _EpochPlan:
    """Draw on the CPU, so that every device sees the same data."""
    generator = seeded_generator(seed, epoch)
    order = torch.randperm(images, generator=generator)[: shape[0] * shape[1]].view(shape)
    reach = info.padding
    shifts = torch.randint(-reach, reach + 1, (2, *shape), generator=generator)
    flips = torch.rand(shape, generator=generator) < (0.5 if info.flip else 0.0)
    return _EpochPlan(order, shifts, flips)


def crop_and_flip(images: Tensor, shifts: Tensor, flips: Tensor, info: DatasetInfo) -> Tensor:
    """Return windows of the padded images, mirrored where `flips`, by index arithmetic alone.

    Images are uint8 [B, C, H, W], shifts int64 [2, B] down and right in pixels, flips bool [B].
    Pixels beyond the edge are reflected or, before normalisation, zero.
    """
    height, width = images.shape[2:]
    across = torch.arange(width, device=images.device)
    columns = torch.where(flips[:, None], width - 1 - across, across) + shifts[1, :, None]
    rows = torch.arange(height, device=images.device) + shifts[0, :, None]
    if info.padding_mode == "reflect":
        return _gather(images, _reflect(rows, height), _reflect(columns, width))
    inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]
    windows = _gather(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
    return windows * inside[:, None]


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pick pixels of rows [B, H] and columns [B, W] from images [B, C, H, W]."""
    places = rows[:, :, None] * images.shape[3] + columns[:, None, :]
    places = places.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, places).view(images.shape)


def _reflect(places: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - places.abs()).abs()


def _inside(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places < size)


class Normaliser:
    """Turns uint8 images [B, C, H, W] into float32 with the data set's mean 0 and deviation 1."""

    def __init__(self, info: DatasetInfo, device: torch.device | str) -> None:
        mean = torch.tensor(info.mean, device=device)[:, None, None]
        std = torch.tensor(info.std, device=device)[:, None, None]
        self._scale, self._shift = 1 / (255 * std), -mean / std

    def __call__(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).mul_(self._scale).add_(self._shift)


def evaluation_batches(
    arrays: ImageArrays, info: DatasetInfo, batch_size: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised images float32 [B, C, H, W] and labels int64 [B] in order, on `device`.

    The last batch holds what is left.
    """
    normalise = Normaliser(info, device)
    for start in range(0, len(arrays), batch_size):
        part = slice(start, start + batch_size)
        images = arrays.images[part].to(device, non_blocking=True)
        yield normalise(images), arrays.labels[part].to(device, non_blocking=True)


def split_validation(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Return (training, validation), `fraction` of the images in the second.

    Drawn with `seed`, every class in proportion. InputError if a side would be empty.
    """
    count = round(len(split) * fraction) if 0 < fraction < 1 else 0
    if not 0 < count < len(split):
        raise InputError(
            f"a validation fraction of {fraction} leaves one side of {len(split)} images empty; "
            "give a number between 0 and 1 that leaves both some"
        )
    order = torch.randperm(len(split), generator=seeded_generator(seed, 0)).numpy()
    train, validation = stratified_split(split.labels.cpu(), count, order)
    return split.subset(train), split.subset(validation)


def count_steps(images: int, batch_size: int) -> int:
    """Return the whole batches in an epoch, or raise InputError if there is not one."""
    if not 1 <= batch_size <= images:
        raise InputError(
            f"a batch of {batch_size} cannot be drawn from {images} training images; "
            f"--batch-size {images} is the largest that works"
        )
    return images // batch_size


def seeded_generator(seed: int, stream: int) -> torch.Generator:
    """Return a CPU generator of its own for every pair (seed, stream)."""
    entropy = (seed % 2**64, stream)
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
