"""Small data sets in the files that are read, npz archives and torchvision's; and refusals."""

import pickle
import struct

import numpy as np
import pytest
import scipy.io
from PIL import Image

from sparse_engine.data.load import load_dataset
from sparse_engine.errors import InputError

GENERATOR = np.random.RandomState(0)


def pixels(*shape):
    return GENERATOR.randint(0, 256, shape, dtype=np.uint8)


def members(**changes):
    """Return the four arrays of a small 3-class npz; a change to None leaves one out."""
    arrays = {
        "train_images": pixels(6, 3, 8, 10),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": pixels(3, 3, 8, 10),
        "test_labels": np.array([0, 1, 1]),
    }
    arrays.update(changes)
    return {key: value for key, value in arrays.items() if value is not None}


def cifar10_members(**changes):
    arrays = {
        "train_images": pixels(20, 32, 32, 3),
        "train_labels": np.arange(20) % 10,
        "test_images": pixels(10, 32, 32, 3),
        "test_labels": np.arange(10),
    }
    return {**arrays, **changes}


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root, folder):
    raw = root / folder / "raw"
    train, labels = pixels(20, 28, 28), np.arange(20, dtype=np.uint8) % 10
    write_idx(raw / "train-images-idx3-ubyte", train)
    write_idx(raw / "train-labels-idx1-ubyte", labels)
    write_idx(raw / "t10k-images-idx3-ubyte", train[:10])
    write_idx(raw / "t10k-labels-idx1-ubyte", labels[:10])
    return train[:, None]


def write_pickle(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def write_cifar10(root):
    folder, train = root / "cifar-10-batches-py", pixels(50, 3, 32, 32)
    for batch in range(5):
        rows = train[10 * batch : 10 * batch + 10].reshape(10, -1)
        write_pickle(folder / f"data_batch_{batch + 1}", {"data": rows, "labels": list(range(10))})
    write_pickle(folder / "test_batch", {"data": rows, "labels": list(range(10))})
    write_pickle(folder / "batches.meta", {"label_names": list("abcdefghij")})
    return train


def write_cifar100(root):
    folder, train = root / "cifar-100-python", pixels(100, 3, 32, 32)
    content = {"data": train.reshape(100, -1), "fine_labels": list(range(100))}
    write_pickle(folder / "train", content)
    write_pickle(folder / "test", content)
    write_pickle(folder / "meta", {"fine_label_names": [str(i) for i in range(100)]})
    return train


def write_svhn(root):
    train = pixels(20, 3, 32, 32)
    for split in ("train", "test"):
        labels = 1 + np.arange(20, dtype=np.uint8)[:, None] % 10
        content = {"X": train.transpose(2, 3, 1, 0), "y": labels}
        scipy.io.savemat(root / f"{split}_32x32.mat", content)
    return train


WRITERS = {
    "mnist": lambda root: write_mnist(root, "MNIST"),
    "fashion-mnist": lambda root: write_mnist(root, "FashionMNIST"),
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "svhn": write_svhn,
}


def message_of(name, data_dir, download=False):
    """Return the one line with which a data set is refused."""
    with pytest.raises(InputError) as caught:
        load_dataset(name, None if data_dir is None else str(data_dir), download)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_pictures(folder, counts, size=(8, 8), ending="png"):
    """Write so many pictures of height and width `size` into a folder for each class."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(pixels(*size, 3)).save(folder / name / f"{number}.{ending}")
