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
from sparse_engine.data.readers import TORCHVISION_CLASSES, read_digits, read_npz, read_torchvision
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


def _from_arrays(name: str, splits: tuple[ImageArrays, ImageArrays], source: str) -> DataSet:
    train, test = splits
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{source}: train_images are {_shape(train)} and test_images {_shape(test)} "
            "(channels x height x width); make them agree"
        )
    if name in TABLE:
        info = TABLE[name]
        _check_against_table(info, splits, source)
    else:
        info = _own_info(name, splits, source)
    info = replace(info, train_size=len(train), test_size=len(test), kind="arrays")
    return DataSet(info, train, test)


def _check_against_table(
    info: DatasetInfo, splits: tuple[ImageArrays, ImageArrays], source: str
) -> None:
    expected = f"{info.channels}x{info.height}x{info.width}"
    if _shape(splits[0]) != expected:
        raise InputError(
            f"{source}: expected images of {expected} (channels x height x width), "
            f"found {_shape(splits[0])}; give other data another name than {info.name}"
        )
    for arrays, split in zip(splits, ("train", "test"), strict=True):
        validate(arrays, f"{source}: {split}", info.classes)
    classes = _count_classes(splits)
    if classes != info.classes:
        raise InputError(
            f"{source}: expected {info.classes} classes, found {classes}; "
            f"give other data another name than {info.name}"
        )


def _own_info(name: str, splits: tuple[ImageArrays, ImageArrays], source: str) -> DatasetInfo:
    classes = _count_classes(splits)
    if classes > len(splits[0]) + len(splits[1]):
        raise InputError(
            f"{source}: the largest label is {classes - 1}, more than there are images; "
            "number the classes 0, 1, 2, ..."
        )
    images = splits[0].images
    channels, height, width = images.shape[1:]
    moments = [_channel_moments(images[:, channel]) for channel in range(channels)]
    return DatasetInfo(
        name=name,
        classes=classes,
        channels=channels,
        height=height,
        width=width,
        train_size=len(splits[0]),
        test_size=len(splits[1]),
        mean=tuple(mean for mean, _ in moments),
        std=tuple(std for _, std in moments),
        padding=max(1, min(height, width) // 8),
    )


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

    train, test, found = find_images(root)
    if classes is not None and found != classes:
        raise InputError(f"{root}: expected {classes} class folders for {info.name}, found {found}")
    info = replace(info, classes=found, train_size=len(train), test_size=len(test))
    return DataSet(info, train, test)


def _count_classes(splits: tuple[ImageArrays, ImageArrays]) -> int:
    return 1 + max(int(arrays.labels.max()) for arrays in splits)


def _shape(arrays: ImageArrays) -> str:
    return "x".join(map(str, arrays.images.shape[1:]))
