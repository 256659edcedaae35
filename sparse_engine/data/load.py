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
from sparse_engine.data.notes import label_notes
from sparse_engine.data.preparation import Preparation
from sparse_engine.data.readers import Splits, read_digits, read_npz, read_torchvision
from sparse_engine.data.torchvision_files import CLASSES as TORCHVISION_CLASSES
from sparse_engine.errors import InputError


def load_dataset(
    name: str,
    data_dir: str | None,
    download: bool | None = None,
    preparation: Preparation | None = None,
) -> DataSet:
    """Read the data set `name`, from `data_dir` where it has files.

    DATA_DIR/NAME.npz goes before every other layout.

    Args:
        name: of the table, `imagefolder:PATH`, or NAME of DATA_DIR/NAME.npz.
        data_dir: the folder with the files.
        download: whether what is missing is fetched; None where nobody could ask for that.
        preparation: how images are made ready, where not as the data set says.

    Raises:
        InputError: an unknown name, files that are missing, damaged or unlike what the table
            says, or a preparation that the data set cannot have.
    """
    data = _read(name, data_dir, download)
    info = (preparation or Preparation()).applied(data.info)
    labels = (split.labels.cpu() for split in (data.train, data.test))
    notes = label_notes(*labels, info, name)
    return DataSet(info, data.train, data.test, (*data.notes, *notes))


def _read(name: str, data_dir: str | None, download: bool | None) -> DataSet:
    check_name(name, data_dir)
    _check_folder(name, data_dir, download)
    path = npz_path(name, data_dir)
    if path is not None:
        archive = read_npz(path)
        splits = (archive.train, archive.test)
        return _from_arrays(name, splits, str(path), archive.class_names, archive.notes)
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


def dataset_info(
    name: str, data_dir: str | None = None, preparation: Preparation | None = None
) -> DatasetInfo:
    """Return the table's row for `name`; only the files of other data sets are read.

    Raises InputError for an unknown name, for files that cannot be read, and for a preparation
    that the data set cannot have.
    """
    if is_known(name):
        return (preparation or Preparation()).applied(TABLE[name])
    return load_dataset(name, data_dir, preparation=preparation).info


def _check_folder(name: str, data_dir: str | None, download: bool | None) -> None:
    if data_dir is None or Path(data_dir).is_dir():
        return
    if not (download and name in TORCHVISION_CLASSES):
        raise InputError(f"--data-dir {data_dir} is not a folder; make it or name another")
    try:
        Path(data_dir).mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--data-dir {data_dir} cannot be made: {error.strerror}") from error


def _from_arrays(
    name: str,
    splits: Splits,
    source: str,
    class_names: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> DataSet:
    train, test = splits
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{source}: train_images are {_shape(train)} and test_images {_shape(test)} "
            "(channels x height x width); make them agree"
        )
    classes = 1 + max(int(arrays.labels.max()) for arrays in splits)
    if class_names:
        if classes > len(class_names):
            raise InputError(
                f"{source}: class_names has {len(class_names)} names, and labels run to "
                f"{classes - 1}; give each class a name"
            )
        classes = len(class_names)
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
    info = replace(info, class_names=class_names or info.class_names)
    return DataSet(info, train, test, notes)


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

    train, test, names = find_images(root)
    if classes is not None and len(names) != classes:
        raise InputError(
            f"{root}: expected {classes} class folders for {info.name}, found {len(names)}; "
            "train and val hold one folder a class"
        )
    info = replace(info, classes=len(names), train_size=len(train), test_size=len(test))
    return DataSet(replace(info, class_names=tuple(names)), train, test)


def _shape(arrays: ImageArrays) -> str:
    return "x".join(map(str, arrays.images.shape[1:]))
