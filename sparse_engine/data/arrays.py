"""The two splits of a data set: images with labels, in memory or as a list of files."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.errors import InputError


@dataclass(frozen=True)
class ImageArrays:
    """Images uint8 [N, C, H, W] with pixels 0..255, and labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "ImageArrays":
        """Return the same images and labels on `device`."""
        return ImageArrays(self.images.to(device), self.labels.to(device))

    def subset(self, indices: Tensor) -> "ImageArrays":
        """Return the images at `indices` int64 [M], in that order."""
        indices = indices.to(self.images.device)
        return ImageArrays(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class ImageFiles:
    """Paths of N image files, and labels int64 [N] on the CPU."""

    paths: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Tensor) -> "ImageFiles":
        """Return the files at `indices` int64 [M], in that order."""
        return ImageFiles(tuple(self.paths[i] for i in indices.tolist()), self.labels[indices])


@dataclass(frozen=True)
class DataSet:
    """A data set: its sizes and conventions, its training split and its test split.

    notes: lines on what is perhaps not as its owner means it.
    """

    info: DatasetInfo
    train: ImageArrays | ImageFiles
    test: ImageArrays | ImageFiles
    notes: tuple[str, ...] = ()


def validate(arrays: ImageArrays, source: str, classes: int | None = None) -> None:
    """Raise InputError unless images and labels fit together.

    `source` is the file and split, such as `mine.npz: train`; with `classes`, labels must be
    below it.
    """
    shape = tuple(arrays.images.shape)
    if min(shape) < 1:
        raise InputError(f"{source}_images is empty (shape {shape}); give at least one image")
    if len(arrays.labels) != len(arrays.images):
        raise InputError(
            f"{source}_labels holds {len(arrays.labels)} labels for {len(arrays.images)} images; "
            "store one label for every image"
        )
    low, high = int(arrays.labels.min()), int(arrays.labels.max())
    if low < 0:
        raise InputError(f"{source}_labels holds {low}; labels count from 0")
    if classes is not None and high >= classes:
        raise InputError(f"{source}_labels holds {high}; expected labels 0 to {classes - 1}")


def stratified_split(labels: Tensor, count: int, order: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the indices of two parts, ascending; the second holds exactly `count` >= 1 of N.

    `labels` is int64 [N] on the CPU and `order` a permutation of 0..N-1 that makes the choice
    random. Every class's share of either part is within one of its exact proportion.
    """
    by_class = order[np.argsort(labels.numpy()[order], kind="stable")]
    # Evenly spaced places in a list sorted by class give each class its proportion.
    places = (2 * np.arange(count) + 1) * len(by_class) // (2 * count)
    chosen = np.sort(by_class[places])
    rest = np.setdiff1d(order, chosen)
    return torch.from_numpy(rest), torch.from_numpy(chosen)
