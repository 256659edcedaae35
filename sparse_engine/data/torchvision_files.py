"""Data sets in torchvision's layout: which files there must be, and what is told of others."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sparse_engine.errors import InputError, first_line
from sparse_engine.installed import require

CLASSES = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}
_IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
_IDX_FILES = tuple(f"{name}-ubyte" for name in _IDX)
_CIFAR10_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
# The folder below --data-dir and the files in it.
LAYOUTS = {
    "mnist": ("MNIST/raw", _IDX_FILES),
    "fashion-mnist": ("FashionMNIST/raw", _IDX_FILES),
    "cifar10": ("cifar-10-batches-py", _CIFAR10_FILES),
    "cifar100": ("cifar-100-python", ("train", "test", "meta")),
    "svhn": (".", ("train_32x32.mat", "test_32x32.mat")),
}
_ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}


def read_splits(name: str, data_dir: str, download: bool | None = None) -> list[tuple[Any, Any]]:
    """Return (images, labels) of the training and of the test split, as the files hold them.

    Args:
        name: one of CLASSES.
        data_dir: the folder with the files, in torchvision's layout.
        download: whether to fetch what is missing; None where nobody could ask for that.

    Raises:
        InputError: a file is missing or damaged; it is named.
    """
    root = Path(data_dir)
    try:
        if download and _missing(name, root):
            _torchvision_splits(name, data_dir, True)
        missing = _missing(name, root)
        if missing:
            raise InputError(
                _told(name, root, f"there is no {missing}", _remedy(name, root, download))
            )
        if name in ("mnist", "fashion-mnist"):
            files = [_stored(root / LAYOUTS[name][0] / file) for file in _IDX_FILES]
            images, labels, test_images, test_labels = (_read_idx(file) for file in files if file)
            return [(images, labels), (test_images, test_labels)]
        return _torchvision_splits(name, data_dir, False)
    except InputError:
        raise
    # torchvision meets damaged files with assertions and with whatever its parsers raise.
    except Exception as error:
        where = _damaged(name, root) or f"in {root / LAYOUTS[name][0]}"
        pass_flag = " and pass --download" if download is False else ""
        remedy = f"delete what is damaged there{pass_flag}"
        raise InputError(_told(name, root, f"{where}: {first_line(error)}", remedy)) from error


def _torchvision_splits(name: str, data_dir: str, download: bool) -> list[tuple[Any, Any]]:
    # Read by torchvision, and SVHN's files by SciPy as well.
    require(f"the data set {name}", "torchvision", *(["scipy"] if name == "svhn" else []))
    from torchvision import datasets

    reader, splits = getattr(datasets, CLASSES[name]), []
    for split in ("train", "test"):
        wanted = {"split": split} if name == "svhn" else {"train": split == "train"}
        stored = reader(data_dir, download=download, **wanted)
        splits.append((stored.data, stored.labels if name == "svhn" else stored.targets))
    return splits


def _told(name: str, root: Path, what: str, remedy: str) -> str:
    return f"{name} is missing or damaged in {root} ({what}); {remedy}, or put {name}.npz there"


def _missing(name: str, root: Path) -> Path | None:
    """Return the first file that should be there and is not, packed by gzip neither."""
    folder, files = LAYOUTS[name]
    return next((root / folder / f for f in files if not _stored(root / folder / f)), None)


def _stored(path: Path) -> Path | None:
    """Return a file, or the one beside it that gzip has packed, if there is one of them."""
    packed = path.with_name(f"{path.name}.gz")
    return next((file for file in (path, packed) if file.is_file()), None)


def _remedy(name: str, root: Path, download: bool | None) -> str:
    folder, files = LAYOUTS[name]
    parts = Path(folder).parts
    for depth in range(len(parts), 0, -1):
        if root.resolve().parts[-depth:] == parts[:depth]:
            return f"pass --data-dir {root.resolve().parents[depth - 1]}, which holds that folder"
    archive = root / _ARCHIVES.get(name, "/")
    if archive.is_file():
        return f"unpack {archive} there"
    for file in files:
        found = None if _stored(root / folder / file) else next(_elsewhere(root, file), None)
        if found:
            ending = ".gz" if found.suffix == ".gz" else ""
            return f"move {found} to {root / folder / file}{ending}, and so all {len(files)} files"
    if download is None:
        return f"put its files into {root / folder}"
    return "download it by hand into that place" if download else "pass --download"


def _elsewhere(root: Path, file: str) -> Iterator[Path]:
    """Yield files of a name, or nearly, in other folders up to two deep."""
    for name in (file, f"{file}.gz", file.replace("-idx", ".idx")):
        for depth in ("", "*/", "*/*/"):
            yield from sorted(root.glob(depth + name))


def _read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of a file of MNIST's format, packed by gzip or not."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        if content[:3] != b"\0\0\x08":
            raise ValueError("it does not begin as an idx file of bytes does")
        rank = content[3]
        shape = np.frombuffer(content, ">u4", rank, 4).astype(int)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: {first_line(error)}") from error


def _damaged(name: str, root: Path) -> str | None:
    """Return the first of a data set's files whose checksum is not that of the original."""
    try:
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity
    except ModuleNotFoundError:  # MNIST's files are read without it
        return None
    reader, folder = getattr(datasets, CLASSES[name]), root / LAYOUTS[name][0]
    sums = [*getattr(reader, "train_list", []), *getattr(reader, "test_list", [])]
    sums += [entry[1:] for entry in getattr(reader, "split_list", {}).values()]
    for file, checksum in sums:
        if (folder / file).is_file() and not check_integrity(folder / file, checksum):
            return f"{folder / file} is not the original file"
    return None
