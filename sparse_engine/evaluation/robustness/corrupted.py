"""Corrupted test images: the released sets where their files are, else made from the test split."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparse_engine.data.arrays import DataSet
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.data.readers import describe_array
from sparse_engine.errors import InputError
from sparse_engine.evaluation.robustness.corruptions import FAMILIES, SEVERITIES, corrupt
from sparse_engine.evaluation.robustness.pixel_model import Batches, pixel_batches

RELEASED = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}
# Random numbers are drawn a batch at a time, so its size is part of what images come out.
BATCH_SIZE = 250


class CorruptedSet(NamedTuple):
    """One family at one severity, with its batches of pixels [B, C, H, W] in [0, 1] and labels."""

    family: str
    severity: int
    stream: Batches


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
    if not (data_dir and data.info.name in RELEASED and folder.is_dir()):
        made = [CorruptedSet(f, s, _made(data, f, s, workers)) for f, s in pairs]
        return "made from the test split", made
    labels = _released_labels(folder, data.info)
    images = {family: _released_images(folder, family, labels, data.info) for family in FAMILIES}
    stored = [CorruptedSet(f, s, _stored(images[f], labels, s)) for f, s in pairs]
    return f"files in {folder}", stored


def _made(data: DataSet, family: str, severity: int, workers: int) -> Batches:
    """Yield the test split, corrupted batch by batch; every time the same images."""
    clean = pixel_batches(data.test, data.info, BATCH_SIZE, workers)
    for number, (pixels, labels) in enumerate(clean):
        yield corrupt(pixels, family, severity, seed=number), labels


def _stored(images: np.ndarray, labels: Tensor, severity: int) -> Batches:
    """Yield one severity of a released file; images uint8 [5 * N, H, W, C] lie on the disk."""
    size = len(labels) // len(SEVERITIES)
    for start in range((severity - 1) * size, severity * size, BATCH_SIZE):
        part = slice(start, min(start + BATCH_SIZE, severity * size))
        stored = torch.from_numpy(np.array(images[part]))
        yield stored.permute(0, 3, 1, 2).float() / 255, labels[part]


def _released_labels(folder: Path, info: DatasetInfo) -> Tensor:
    path = folder / "labels.npy"
    labels = _load(path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise InputError(f"{path} is {describe_array(labels)}; expected integers [5 N]")
    if len(labels) % len(SEVERITIES):
        raise InputError(
            f"{path} holds {len(labels)} labels; expected five severities of equally many"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= info.classes:
        raise InputError(f"{path} holds labels {low} to {high}; expected 0 to {info.classes - 1}")
    return torch.from_numpy(np.array(labels, dtype=np.int64))


def _released_images(folder: Path, family: str, labels: Tensor, info: DatasetInfo) -> np.ndarray:
    path = folder / f"{family}.npy"
    images = _load(path)
    shape = (len(labels), info.height, info.width, info.channels)
    if images.shape != shape or images.dtype != np.uint8:
        raise InputError(
            f"{path} is {describe_array(images)}; expected uint8 of shape {list(shape)}, "
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
