"""The table of data sets known by name. Imports no torch, so that `--help` and errors are quick."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sparse_engine.data.class_names import CLASS_NAMES
from sparse_engine.errors import InputError, nearest

FOLDER_PREFIX = "imagefolder:"


@dataclass(frozen=True)
class DatasetInfo:
    """Sizes and training conventions of one data set.

    `height`, `width` and `padding` are in pixels; `mean` and `std` hold one number a channel, of
    pixels scaled to [0, 1]; `kind` says whether the images lie in memory or as files in a folder.
    Training images are flipped and moved unless `augment` is off; a crop of a picture in a folder
    shows at least the share `crop_scale` of its area. `class_names` is empty where classes have
    numbers alone.
    """

    name: str
    classes: int
    channels: int
    height: int
    width: int
    train_size: int
    test_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    padding_mode: Literal["reflect", "zeros"] = "zeros"
    flip: bool = False
    kind: Literal["arrays", "folder"] = "arrays"
    augment: bool = True
    crop_scale: float = 0.08
    class_names: tuple[str, ...] = ()

    def class_in_words(self, label: int) -> str:
        """Return a class as messages name it: its number, and its name if it has one."""
        named = label < len(self.class_names)
        return f"{label} ('{self.class_names[label]}')" if named else f"{label}"


_MNIST = DatasetInfo("mnist", 10, 1, 28, 28, 60000, 10000, (0.1307,), (0.3081,), padding=2)
_CIFAR10 = DatasetInfo(
    name="cifar10",
    classes=10,
    channels=3,
    height=32,
    width=32,
    train_size=50000,
    test_size=10000,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    padding=4,
    padding_mode="reflect",
    flip=True,
)
_ROWS = (
    DatasetInfo("digits", 10, 1, 8, 8, 1437, 360, (0.3053,), (0.3761,), padding=1),
    _MNIST,
    replace(_MNIST, name="fashion-mnist", mean=(0.2860,), std=(0.3530,), flip=True),
    _CIFAR10,
    replace(
        _CIFAR10,
        name="cifar100",
        classes=100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        padding_mode="zeros",
    ),
    replace(
        _CIFAR10,
        name="svhn",
        train_size=73257,
        test_size=26032,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        padding_mode="zeros",
        flip=False,
    ),
    DatasetInfo(
        name="imagenet",
        classes=1000,
        channels=3,
        height=224,
        width=224,
        train_size=1281167,
        test_size=50000,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        flip=True,
        kind="folder",
    ),
)
TABLE = {row.name: replace(row, class_names=CLASS_NAMES.get(row.name, ())) for row in _ROWS}
# What a network of one data set must find in another, in words.
_PREPROCESSING = {
    "classes": "number of classes",
    "channels": "number of channels",
    "height": "image height",
    "width": "image width",
    "mean": "normalisation (mean)",
    "std": "normalisation (deviation)",
}


def is_known(name: str) -> bool:
    """Return whether `name` has a row in the table, so that its sizes need no data."""
    return name in TABLE


def check_name(name: str, data_dir: str | None = None) -> None:
    """Raise InputError unless `name` is in the table, `imagefolder:PATH`, or DATA_DIR/NAME.npz."""
    if is_known(name):
        return
    if name.startswith(FOLDER_PREFIX):
        if name == FOLDER_PREFIX:
            raise InputError(f"'{name}' names no folder; write {FOLDER_PREFIX}PATH")
        return
    if npz_path(name, data_dir) is not None:
        return
    missing = "" if data_dir is None else f" and there is no {Path(data_dir) / name}.npz"
    hint = nearest(name, [*TABLE, FOLDER_PREFIX, *_npz_names(data_dir)])
    choices = f"; choose from {', '.join(TABLE)}, {FOLDER_PREFIX}PATH or a NAME.npz in --data-dir"
    raise InputError(f"unknown data set '{name}'{missing}{hint or choices}")


def first_difference(one: DatasetInfo, other: DatasetInfo) -> tuple[str, Any, Any] | None:
    """Return in what the images or classes of two data sets differ, and the value of each.

    None says that a network of the one can be shown the other.
    """
    for name, words in _PREPROCESSING.items():
        values = getattr(one, name), getattr(other, name)
        if values[0] != values[1]:
            return words, *values
    for label, names in enumerate(zip(one.class_names, other.class_names)):
        if names[0] != names[1]:
            return f"name of class {label}", *names
    return None


def info_of(facts: Mapping[str, Any]) -> DatasetInfo:
    """Return the info that `asdict` made and JSON has kept; earlier versions kept fewer facts.

    Raises TypeError or ValueError for anything else.
    """
    info = DatasetInfo(**{k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()})
    numbers = (info.classes, info.channels, info.height, info.width)
    if not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError(f"sizes {numbers}")
    if not len(info.mean) == len(info.std) == info.channels:
        raise ValueError(f"{len(info.mean)} means of {info.channels} channels")
    if info.class_names and len(info.class_names) != info.classes:
        raise ValueError(f"{len(info.class_names)} names of {info.classes} classes")
    return info


def npz_path(name: str, data_dir: str | None) -> Path | None:
    """Return DATA_DIR/NAME.npz where that file exists, else None."""
    path = None if data_dir is None else Path(data_dir) / f"{name}.npz"
    return path if path is not None and path.is_file() else None


def _npz_names(data_dir: str | None) -> list[str]:
    return [] if data_dir is None else [path.stem for path in Path(data_dir).glob("*.npz")]
