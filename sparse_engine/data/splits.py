"""What a run trains on and what it is evaluated on, and the batches of either."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparse_engine.data.arrays import DataSet, ImageArrays, ImageFiles
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.data.folder import FolderLoader, folder_evaluation_batches
from sparse_engine.data.loader import ArrayLoader, evaluation_batches, split_validation

Split = ImageArrays | ImageFiles


def choosing_split(
    data: DataSet, select: str, validation: float, seed: int
) -> tuple[Split, str, Split]:
    """Return what a run trains on, and name and images of the split it is evaluated on meanwhile.

    With --select validation these are training images held out, and may choose; else the test
    split, which never does.

    Args:
        data: the run's data set.
        select: "validation" or "last", as --select.
        validation: the share of the training images that is held out.
        seed: the seed by which these are chosen.
    """
    if select == "validation":
        train, held_out = split_validation(data.train, validation, seed)
        return train, "validation", held_out
    return data.train, "test", data.test


def training_loader(
    split: Split, info: DatasetInfo, batch_size: int, device: torch.device, seed: int, workers: int
) -> ArrayLoader | FolderLoader:
    """Return the loader of a split's kind; see ArrayLoader."""
    if isinstance(split, ImageArrays):
        return ArrayLoader(split, info, batch_size, device, seed=seed)
    return FolderLoader(split, info, batch_size, device, seed=seed, workers=workers)


def batches(
    split: Split, info: DatasetInfo, batch_size: int, device: torch.device, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a split's batches in order, without augmentation."""
    if isinstance(split, ImageArrays):
        return evaluation_batches(split, info, batch_size, device)
    return folder_evaluation_batches(split, info, batch_size, device, workers=workers)
