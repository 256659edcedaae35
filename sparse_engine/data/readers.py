"""Readers of image files: scikit-learn's digits, `.npz` archives and torchvision's layouts."""

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from sparse_engine.data.arrays import ImageArrays, stratified_split, validate
from sparse_engine.errors import InputError, first_line

Splits = tuple[ImageArrays, ImageArrays]

TORCHVISION_CLASSES = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}
_DIGITS_TEST_SIZE = 360
_CHANNELS = (1, 3, 4)
_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def read_digits() -> Splits:
    """Return scikit-learn's handwritten digits as 1437 training and 360 test images, 8 x 8.

    The split is stratified by class and always the same.
    """
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    arrays = ImageArrays(torch.from_numpy(images), torch.from_numpy(targets.astype(np.int64)))
    # numpy promises that RandomState's stream never changes; newer generators may.
    order = np.random.RandomState(0).permutation(len(arrays))
    train, test = stratified_split(arrays.labels, _DIGITS_TEST_SIZE, order)
    return arrays.subset(train), arrays.subset(test)


def read_npz(path: Path) -> Splits:
    """Return the training and test split stored in an `.npz` file.

    The file holds `train_images`, `train_labels`, `test_images` and `test_labels`; images are
    uint8 [N, C, H, W], [N, H, W, C] or [N, H, W], labels integers [N]. InputError names the file
    and the key that cannot be used.
    """
    members = _members(path)
    return _npz_split(members, path, "train"), _npz_split(members, path, "test")


def read_torchvision(name: str, data_dir: str, download: bool = False) -> Splits:
    """Return both splits of a data set stored in torchvision's layout below `data_dir`.

    Fetches missing files only when `download` is set. InputError says how to get the files.
    """
    try:
        train = _torchvision_split(name, data_dir, "train", download)
        return train, _torchvision_split(name, data_dir, "test", download)
    except InputError:
        raise
    # torchvision meets damaged files with assertions and with whatever its parsers raise.
    except Exception as error:
        remedy = "delete what is damaged there" if download else "pass --download"
        raise InputError(
            f"{name} is missing or damaged in {data_dir} ({first_line(error)}); "
            f"{remedy}, or put {name}.npz there"
        ) from error


def _members(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is no npz archive, or is cut short; write it again with numpy.savez"
        )
    place, members = str(path), {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            for key in (key for key in _KEYS if key in names):
                place = f"{path}: {key}"
                _check_size(archive.zip, f"{key}.npy")
                members[key] = archive[key]
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{place} is damaged ({first_line(error)}); write it again with numpy.savez"
        ) from error
    for key in _KEYS:
        if key not in members:
            listing = ", ".join(names) or "nothing"
            raise InputError(f"{path} has no array '{key}' (found {listing}); add it")
    return members


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


def _npz_split(members: dict[str, np.ndarray], path: Path, split: str) -> ImageArrays:
    labels = members[f"{split}_labels"]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InputError(
            f"{path}: {split}_labels is {describe_array(labels)}; expected integers of shape [N]"
        )
    return _arrays(members[f"{split}_images"], labels, f"{path}: {split}")


def _torchvision_split(name: str, data_dir: str, split: str, download: bool) -> ImageArrays:
    from torchvision import datasets

    reader = getattr(datasets, TORCHVISION_CLASSES[name])
    wanted = {"split": split} if name == "svhn" else {"train": split == "train"}
    stored = reader(data_dir, download=download, **wanted)
    labels = stored.labels if name == "svhn" else stored.targets
    source = f"{Path(data_dir) / name}: {split}"
    return _arrays(np.asarray(stored.data), np.asarray(labels), source)


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
