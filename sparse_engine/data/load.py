"""Find a data set by name, read it and check it against what is known of it."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sparse_engine.data.arrays import DataSet, ImageArrays, validate
from sparse_engine.data.catalog import (
    FOLDER_PREFIX,
    TABLE,
    DatasetInfo,
    check_name,
    is_known,
    npz_path,
)
from sparse_engine.data.readers import (
    TORCHVISION_CLASSES,
    Splits,
    read_digits,
    read_npz,
    read_torchvision,
)
from sparse_engine.errors import InputError


def load_dataset(name: str, data_dir: str | None, download: bool = False) -> DataSet:
    """Read the data set `name`, from `data_dir` where it has files.

    DATA_DIR/NAME.npz goes before every other layout. Only `download` lets anything be fetched.
    Raises InputError for an unknown name and for files that are missing, damaged or unlike what
    the table says.
    """
    check_name(name, data_dir)
    _check_folder(name, data_dir, download)
    archive = npz_path(name, data_dir)
    if archive is not None:
        return _from_arrays(name, read_npz(archive), str(archive))
    if name == "digits":
        return _from_arrays(name, read_digits(), name)
    if name.startswith(FOLDER_PREFIX):
        # A user's folder of images is treated as ImageNet is, its classes counted.
        like_imagenet = replace(TABLE["imagenet"], name=name)
        return _from_folder(like_imagenet, Path(name.removeprefix(FOLDER_PREFIX)))
    if data_dir is None:
        raise InputError(f"{name} lies in files; pass --data-dir with the folder that holds them")
    if name in TORCHVISION_CLASSES:
        splits = read_torchvision(name, data_dir, download)
        return _from_arrays(name, splits, str(Path(data_dir) / name))
    return _from_folder(TABLE[name], Path(data_dir), TABLE[name].classes)


def dataset_info(name: str, data_dir: str | None = None) -> DatasetInfo:
    """Return the table's row for `name`; only the files of other data sets are read.

    Raises InputError for an unknown name and for files that cannot be read.
    """
    return TABLE[name] if is_known(name) else load_dataset(name, data_dir).info


def _check_folder(name: str, data_dir: str | None, download: bool) -> None:
    if data_dir is None or Path(data_dir).is_dir():
        return
    if not (download and name in TORCHVISION_CLASSES):
        raise InputError(f"--data-dir {data_dir} is not a folder; make it or name another")
    try:
        Path(data_dir).mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--data-dir {data_dir} cannot be made: {error.strerror}") from error


def _from_arrays(name: str, splits: Splits, source: str) -> DataSet:
    train, test = splits
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{source}: train_images are {_shape(train)} and test_images {_shape(test)} "
            "(channels x height x width); make them agree"
        )
    classes = 1 + max(int(arrays.labels.max()) for arrays in splits)
    if name in TABLE:
        info = TABLE[name]
        _check_against_table(info, splits, classes, source)
    elif classes > len(train) + len(test):
        raise InputError(
            f"{source}: the largest label is {classes - 1}, more than there are images; "
            "number the classes 0, 1, 2, ..."
        )
    else:
        info = _own_info(name, train, classes)
    info = replace(info, train_size=len(train), test_size=len(test), kind="arrays")
    return DataSet(info, train, test)


def _check_against_table(info: DatasetInfo, splits: Splits, classes: int, source: str) -> None:
    other_name = f"give other data another name than {info.name}"
    expected, given = f"{info.channels}x{info.height}x{info.width}", _shape(splits[0])
    if given != expected:
        raise InputError(
            f"{source}: expected images of {expected} (channels x height x width), "
            f"found {given}; {other_name}"
        )
    for arrays, split in zip(splits, ("train", "test"), strict=True):
        validate(arrays, f"{source}: {split}", info.classes)
    if classes != info.classes:
        raise InputError(
            f"{source}: expected {info.classes} classes, found {classes}; {other_name}"
        )


def _own_info(name: str, train: ImageArrays, classes: int) -> DatasetInfo:
    count, channels, height, width = train.images.shape
    mean, std = zip(*(_channel_moments(channel) for channel in train.images.unbind(1)))
    padding = max(1, min(height, width) // 8)
    return DatasetInfo(name, classes, channels, height, width, count, 0, mean, std, padding)


def _channel_moments(pixels: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of uint8 pixels scaled to [0, 1], without a float copy."""
    counts = torch.bincount(pixels.flatten(), minlength=256).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum()
    mean = (share * levels).sum()
    std = (share * (levels - mean).square()).sum().sqrt().item()
    # A channel of one value carries nothing: it is shifted to zero and must not be divided by zero.
    return mean.item(), std or 1.0


def _from_folder(info: DatasetInfo, root: Path, classes: int | None = None) -> DataSet:
    from sparse_engine.data.folder import find_images

    train, test, count = find_images(root)
    if classes is not None and count != classes:
        raise InputError(
            f"{root}: expected {classes} class folders for {info.name}, found {count}; "
            "train and val hold one folder a class"
        )
    info = replace(info, classes=count, train_size=len(train), test_size=len(test))
    return DataSet(info, train, test)


def _shape(arrays: ImageArrays) -> str:
    return "x".join(map(str, arrays.images.shape[1:]))
