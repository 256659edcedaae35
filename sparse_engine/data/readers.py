"""Readers of image files: scikit-learn's digits, `.npz` archives and torchvision's layouts."""

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sparse_engine.data.arrays import ImageArrays, stratified_split, validate
from sparse_engine.data.torchvision_files import read_splits
from sparse_engine.errors import InputError, first_line
from sparse_engine.installed import require

Splits = tuple[ImageArrays, ImageArrays]


class Archive(NamedTuple):
    """What an `.npz` file holds: both splits, names of the classes, lines on what was not read."""

    train: ImageArrays
    test: ImageArrays
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


_DIGITS_TEST_SIZE = 360
_CHANNELS = (1, 3, 4)
_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
_NAMES = "class_names"
_KNOWN = (*_KEYS, _NAMES)
_HELD_OUT = ("val_images", "val_labels")
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_digits() -> Splits:
    """Return scikit-learn's handwritten digits as 1437 training and 360 test images, 8 x 8.

    The split is stratified by class and always the same.
    """
    require("the data set digits", "sklearn")
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    arrays = ImageArrays(torch.from_numpy(images), torch.from_numpy(targets.astype(np.int64)))
    # numpy promises that RandomState's stream never changes; newer generators may.
    order = np.random.RandomState(0).permutation(len(arrays))
    train, test = stratified_split(arrays.labels, _DIGITS_TEST_SIZE, order)
    return arrays.subset(train), arrays.subset(test)


def read_npz(path: Path) -> Archive:
    """Return the training and test split stored in an `.npz` file.

    The file holds `train_images`, `train_labels`, `test_images` and `test_labels`, and may hold
    `class_names`; images are uint8 [N, C, H, W], [N, H, W, C] or [N, H, W], labels integers [N] or
    [N, 1], names texts [K]. InputError names the file and the key that cannot be used.
    """
    members, other = _members(path, _KEYS)
    train, test = (
        _npz_split(members[f"{split}_images"], members[f"{split}_labels"], f"{path}: {split}")
        for split in ("train", "test")
    )
    return Archive(train, test, _class_names(members, path), _unread(other, path))


def read_npz_test(path: Path) -> tuple[ImageArrays, tuple[str, ...]]:
    """Return the images of an `.npz` file that holds a test set, and its classes' names, if any.

    They are `images` and `labels`, or `test_images` and `test_labels`, as read_npz takes them.
    """
    names = _names(path)
    split = "" if "images" in names and "test_images" not in names else "test_"
    members, _ = _members(path, (f"{split}images", f"{split}labels"))
    source = f"{path}: {split.removesuffix('_')}"
    arrays = _npz_split(members[f"{split}images"], members[f"{split}labels"], source)
    return arrays, _class_names(members, path)


def read_torchvision(name: str, data_dir: str, download: bool | None = None) -> Splits:
    """Return both splits of a data set stored in torchvision's layout below `data_dir`.

    Fetches missing files only when `download` is set. InputError says how to get the files; None
    is for those who cannot ask for a download.
    """
    train, test = (
        _arrays(np.asarray(images), np.asarray(labels), f"{Path(data_dir) / name}: {split}")
        for split, (images, labels) in zip(
            ("train", "test"), read_splits(name, data_dir, download), strict=True
        )
    )
    return train, test


def _members(path: Path, keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the arrays of `keys`, and class_names if there are any; and the names of all others.

    Raises:
        InputError: one of `keys` is not there, or an array cannot be read.
    """
    _check_archive(path)
    place, members = str(path), {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            for key in (key for key in (*keys, _NAMES) if key in names):
                place = f"{path}: {key}"
                _check_size(archive.zip, f"{key}.npy")
                members[key] = archive[key]
    except _UNREADABLE as error:
        raise InputError(
            f"{place} is damaged ({first_line(error)}); write it again with numpy.savez"
        ) from error
    for key in keys:
        if key not in members:
            listing = ", ".join(names) or "nothing"
            raise InputError(f"{path} has no array '{key}' (found {listing}); add it")
    return members, [name for name in names if name not in members]


def _names(path: Path) -> list[str]:
    _check_archive(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive.files
    except _UNREADABLE as error:
        raise InputError(
            f"{path} is damaged ({first_line(error)}); write it again with numpy.savez"
        ) from error


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is no npz archive, or is cut short; write it again with numpy.savez"
        )


def _class_names(members: Mapping[str, np.ndarray], path: Path) -> tuple[str, ...]:
    names = members.get(_NAMES)
    if names is None:
        return ()
    if names.ndim != 1 or names.dtype.kind != "U" or len(set(names.tolist())) < len(names):
        raise InputError(
            f"{path}: class_names is {describe_array(names)}; expected different texts of shape "
            "[K], one a class"
        )
    return tuple(names.tolist())


def _unread(names: list[str], path: Path) -> tuple[str, ...]:
    """Return a line for arrays of a file that nobody reads."""
    notes, held_out = [], [name for name in names if name in _HELD_OUT]
    if held_out:
        notes.append(
            f"{path}: {' and '.join(held_out)} are not read; training has train_images, results "
            "are of test_images, and --select validation holds out training images"
        )
    other = [name for name in names if name not in _HELD_OUT]
    if other:
        notes.append(f"{path}: not read: {', '.join(other)}; known are {', '.join(_KNOWN)}")
    return tuple(notes)


def _check_size(archive: zipfile.ZipFile, name: str) -> None:
    """Raise ValueError for an array whose header promises more than its file holds.

    NumPy takes the memory of what is promised before it reads.
    """
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        first, later = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
        shape, _, dtype = (first if version == (1, 0) else later)(file)
        promised = file.tell() + math.prod(shape) * dtype.itemsize
    whole = promised == archive.getinfo(name).file_size and min(shape, default=0) >= 0
    # What holds objects is refused as such when it is read.
    if not whole and not dtype.hasobject:
        raise ValueError(f"an array of shape {shape} and {dtype} that is not all there")


def _npz_split(images: np.ndarray, labels: np.ndarray, source: str) -> ImageArrays:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind in "iub" and labels.ndim == 2:
        raise InputError(
            f"{source}_labels is {describe_array(labels)}: several labels an image (multi-label) "
            "cannot be trained; store the number of one class for each image, of shape [N]"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InputError(
            f"{source}_labels is {describe_array(labels)}; expected integers of shape [N]"
        )
    return _arrays(images, labels, source)


def _arrays(images: np.ndarray, labels: np.ndarray, source: str) -> ImageArrays:
    """Turn arrays in any of the accepted layouts into checked tensors."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise InputError(
            f"{source}_images is {describe_array(images)}; expected uint8 of shape [N, C, H, W], "
            "[N, H, W, C] or [N, H, W]"
        )
    images = np.ascontiguousarray(_channels_first(images, source))
    arrays = ImageArrays(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))
    validate(arrays, source)
    return arrays


def _channels_first(images: np.ndarray, source: str) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    if images.shape[1] in _CHANNELS:
        return images
    if images.shape[3] in _CHANNELS:
        return images.transpose(0, 3, 1, 2)
    raise InputError(
        f"{source}_images is {describe_array(images)}; expected 1, 3 or 4 channels in its "
        "second or last axis"
    )


def describe_array(array: np.ndarray) -> str:
    """Return an array's type and shape in words."""
    return f"{array.dtype} of shape {list(array.shape)}"
