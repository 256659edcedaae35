"""Corrupted test images: the released sets where their files are, else made from the test split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparse_engine.data.arrays import DataSet
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.errors import InputError
from sparse_engine.evaluation.robustness.corruptions import FAMILIES, SEVERITIES, corrupt
from sparse_engine.evaluation.robustness.pixel_model import pixel_batches

RELEASED = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}
# Random numbers are drawn a batch at a time, so its size is part of what images come out.
BATCH_SIZE = 250


class CorruptedSet(NamedTuple):
    """One family at one severity, with its batches of pixels [B, C, H, W] in [0, 1] and labels."""

    family: str
    severity: int
    stream: Iterable[tuple[Tensor, Tensor]]


def corrupted_sets(
    data: DataSet, data_dir: str | None, severities: Sequence[int], workers: int
) -> tuple[str, list[CorruptedSet]]:
    """Return where the images come from, in words, and every family at every severity.

    Nothing is read or made before a set's batches are asked for, but files are checked.

    Raises:
        InputError: a released set lacks a file, or one has an unexpected shape.
    """
    folder = Path(data_dir or "") / RELEASED.get(data.info.name, "")
    pairs = [(family, severity) for family in FAMILIES for severity in severities]
    if data_dir and data.info.name in RELEASED and folder.is_dir():
        labels = _released_labels(folder, data.info)
        images = {
            family: _released_images(folder, family, labels, data.info) for family in FAMILIES
        }
        sets = [CorruptedSet(f, s, _Stored(images[f], labels, s)) for f, s in pairs]
        return f"files in {folder}", sets
    sets = [CorruptedSet(f, s, _Made(data, f, s, workers)) for f, s in pairs]
    return "made from the test split", sets


class _Made:
    """The test split, corrupted batch by batch; every pass gives the same images."""

    def __init__(self, data: DataSet, family: str, severity: int, workers: int) -> None:
        self._data, self._workers = data, workers
        self._family, self._severity = family, severity

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        clean = pixel_batches(self._data.test, self._data.info, BATCH_SIZE, self._workers)
        for number, (pixels, labels) in enumerate(clean):
            yield corrupt(pixels, self._family, self._severity, seed=number), labels


class _Stored:
    """One severity of a released file; images uint8 [5 * N, H, W, C] lie on the disk."""

    def __init__(self, images: np.ndarray, labels: Tensor, severity: int) -> None:
        size = len(labels) // len(SEVERITIES)
        part = slice((severity - 1) * size, severity * size)
        self._images, self._labels = images[part], labels[part]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self._labels), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            stored = torch.from_numpy(np.array(self._images[part]))
            yield stored.permute(0, 3, 1, 2).float() / 255, self._labels[part]


def _released_labels(folder: Path, info: DatasetInfo) -> Tensor:
    labels = _load(folder / "labels.npy")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise InputError(f"{folder / 'labels.npy'} is {_describe(labels)}; expected integers [5 N]")
    if len(labels) % len(SEVERITIES):
        raise InputError(
            f"{folder / 'labels.npy'} holds {len(labels)} labels; expected five severities of "
            "equally many"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= info.classes:
        raise InputError(
            f"{folder / 'labels.npy'} holds labels {low} to {high}; expected 0 to "
            f"{info.classes - 1}"
        )
    return torch.from_numpy(np.array(labels, dtype=np.int64))


def _released_images(folder: Path, family: str, labels: Tensor, info: DatasetInfo) -> np.ndarray:
    path = folder / f"{family}.npy"
    images = _load(path)
    shape = (len(labels), info.height, info.width, info.channels)
    if images.shape != shape or images.dtype != np.uint8:
        raise InputError(
            f"{path} is {_describe(images)}; expected uint8 of shape {list(shape)}, "
            "severity 1 first"
        )
    return images


def _load(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path} does not exist; unpack the whole released set, or move it away")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}); unpack it again") from error


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {list(array.shape)}"
