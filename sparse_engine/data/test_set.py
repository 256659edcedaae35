"""Another test set for a run: images in its sizes, labels in the numbers of its classes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparse_engine.data.arrays import DataSet, ImageArrays, ImageFiles
from sparse_engine.data.catalog import FOLDER_PREFIX, DatasetInfo, check_name, is_known, npz_path
from sparse_engine.data.folder import find_split
from sparse_engine.data.load import load_dataset
from sparse_engine.data.readers import read_npz_test
from sparse_engine.errors import InputError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_SHOWN = 5


def load_test_set(source: str, data_dir: str | None, info: DatasetInfo) -> DataSet:
    """Return another test set as a data set of a run, whose normalisation it is given.

    Args:
        source: a data set's name, of which the test split is taken; an `.npz` file of `images` and
            `labels`, or `test_images` and `test_labels`; or a folder with a folder of images for
            each class (or with these in `test` or `val`).
        data_dir: the folder with the files of a name.
        info: of the run's data. Classes are matched by name where both have names, and may be a
            part of the run's; else by number.

    Returns:
        a data set that has no training images of its own: both its splits are the test set.

    Raises:
        InputError: what cannot be read, or is not of the run's sizes and classes.
    """
    folder = _folder(source)
    split, names = _stored(source, data_dir, info) if folder is None else find_split(folder)
    labels = _own_labels(split.labels, names, info, source, folder is not None)
    split = replace(split, labels=labels)
    if folder is not None and info.kind != "folder":
        split = _decoded(split, info)
    if isinstance(split, ImageArrays):
        _check_shape(split, info, source)
    return DataSet(info, split, split)


def _folder(source: str) -> Path | None:
    """Return the folder of class folders that a source names, if it names one."""
    path = Path(source.removeprefix(FOLDER_PREFIX))
    if is_known(source) or not (source.startswith(FOLDER_PREFIX) or path.is_dir()):
        return None
    if not path.is_dir():
        raise InputError(f"test set '{source}': there is no folder '{path}'")
    return next((path / name for name in ("test", "val") if (path / name).is_dir()), path)


def _stored(
    source: str, data_dir: str | None, info: DatasetInfo
) -> tuple[ImageArrays | ImageFiles, tuple[str, ...]]:
    if Path(source).suffix == ".npz":
        if not Path(source).is_file():
            raise InputError(f"test set '{source}' does not exist")
        return read_npz_test(Path(source))
    path = npz_path(source, data_dir)
    if path is not None and not is_known(source):
        return read_npz_test(path)
    try:
        check_name(source, data_dir)
    except InputError as error:
        raise InputError(f"{error}; or the path of an .npz file or of a folder") from None
    data = load_dataset(source, data_dir)
    if not info.class_names and data.info.classes != info.classes:
        raise InputError(
            f"test set '{source}' has {data.info.classes} classes, and the run {info.classes}"
        )
    return data.test, data.info.class_names


def _own_labels(
    labels: Tensor, names: Sequence[str], info: DatasetInfo, source: str, are_folders: bool
) -> Tensor:
    """Return the run's labels int64 [N] for those of a test set, whose classes are called so."""
    own = info.class_names
    if not own and are_folders:  # of a run whose classes have numbers alone
        own = tuple(map(str, range(info.classes)))
    used = labels.unique().tolist()
    if not (own and names):
        if used[-1] >= info.classes:
            raise InputError(
                f"test set '{source}' has labels up to {used[-1]}; those of the run are 0 to "
                f"{info.classes - 1}"
            )
        return labels
    table = torch.full((used[-1] + 1,), -1)
    for label in used:
        if names[label] not in own:
            known = ", ".join(own[:_SHOWN]) + (", ..." if len(own) > _SHOWN else "")
            raise InputError(
                f"test set '{source}' has a class '{names[label]}', which the run has not "
                f"(its {len(own)} classes: {known}); call classes as in training"
            )
        table[label] = own.index(names[label])
    return table[labels]


def _check_shape(arrays: ImageArrays, info: DatasetInfo, source: str) -> None:
    found, wanted = tuple(arrays.images.shape[1:]), (info.channels, info.height, info.width)
    if found != wanted:
        found, wanted = ("x".join(map(str, shape)) for shape in (found, wanted))
        raise InputError(
            f"images of test set '{source}' are {found} (channels x height x width), and the "
            f"run's {wanted}; store them in that size"
        )


def _decoded(files: ImageFiles, info: DatasetInfo) -> ImageArrays:
    """Return pictures as they are, which must be of the run's size."""
    from PIL import Image

    images = np.empty((len(files), info.height, info.width, info.channels), np.uint8)
    for number, path in enumerate(files.paths):
        try:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert(_MODES[info.channels]))
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(
                f"{path} is not a readable image ({error}); replace or remove it"
            ) from None
        if pixels.shape[:2] != (info.height, info.width):
            raise InputError(
                f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, and the run's images "
                f"{info.width} x {info.height}; resize it"
            )
        images[number] = pixels.reshape(images.shape[1:])
    return ImageArrays(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), files.labels)
