"""Reading data sets from npz archives, torchvision's layouts and scikit-learn."""

import gzip
import io
import os

import numpy as np
import pytest
import torch
import torchvision
from data_files import WRITERS, members, message_of, pixels, write_cifar10, write_mnist, write_svhn

from sparse_engine.data.load import dataset_info, load_dataset
from sparse_engine.data.readers import read_digits
from sparse_engine.data.torchvision_files import LAYOUTS


def test_digits_split_is_fixed_and_stratified():
    train, test = read_digits()
    again, _ = read_digits()
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.dtype == torch.uint8
    assert int(train.images.max()) == 255
    assert torch.equal(train.images, again.images)
    assert set(test.labels.bincount().tolist()) <= {35, 36, 37}
    rows = {bytes(image.numpy().tobytes()) for image in train.images}
    assert not any(image.numpy().tobytes() in rows for image in test.images)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_last_is_recognised(tmp_path, channels):
    train, test = pixels(6, 8, 10, channels), pixels(3, 8, 10, channels)
    np.savez(tmp_path / "mine.npz", **members(train_images=train, test_images=test))
    images = load_dataset("mine", str(tmp_path)).train.images
    assert np.array_equal(images.numpy(), train.transpose(0, 3, 1, 2))
    assert images.is_contiguous()


def test_no_channel_axis_is_one_channel(tmp_path):
    train, test = pixels(6, 8, 10), pixels(3, 8, 10)
    labels = np.array([[0], [1], [2], [0], [1], [2]], np.uint8)
    np.savez(
        tmp_path / "grey.npz",
        **members(train_images=train, test_images=test, train_labels=labels),
    )
    data = load_dataset("grey", str(tmp_path))
    assert np.array_equal(data.train.images[:, 0].numpy(), train)
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_ambiguous_axes_are_channels_first(tmp_path):
    train = pixels(6, 3, 8, 3)
    np.savez(tmp_path / "thin.npz", **members(train_images=train, test_images=train[:3]))
    assert load_dataset("thin", str(tmp_path)).train.images.shape == (6, 3, 8, 3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"test_labels": None}, "mine.npz has no array 'test_labels' (found train_images, "),
        ({"train_images": pixels(6, 3, 8, 8) / 255}, "train_images is float64 of shape [6, 3, 8"),
        ({"train_images": pixels(6, 7)}, "train_images is uint8 of shape [6, 7]; expected"),
        ({"train_images": pixels(6, 5, 8, 9)}, "expected 1, 3 or 4 channels"),
        ({"train_images": pixels(5, 3, 8, 10)}, "train_labels holds 6 labels for 5 images"),
        ({"test_images": pixels(3, 3, 8, 8)}, "train_images are 3x8x10 and test_images 3x8x8"),
        ({"test_images": pixels(0, 3, 8, 10)}, "test_images is empty (shape (0, 3, 8, 10))"),
        ({"train_labels": np.array([0, 1, -1, 0, 1, 2])}, "train_labels holds -1; labels count"),
        ({"train_labels": np.array([0, 1, 900, 0, 1, 2])}, "the largest label is 900, more than"),
        ({"train_labels": np.zeros(6)}, "train_labels is float64 of shape [6]; expected integers"),
        ({"train_labels": np.zeros((6, 3), int)}, "of shape [6, 3]: several labels an image (mult"),
        ({"class_names": np.array(["a", "b"])}, "class_names has 2 names, and labels run to 2"),
        ({"class_names": np.arange(3)}, "class_names is int64 of shape [3]; expected different"),
        ({"train_labels": np.array([{}] * 6)}, "mine.npz: train_labels is damaged (Object arrays"),
    ],
)
def test_bad_npz_names_file_and_key(tmp_path, changes, expected):
    np.savez(tmp_path / "mine.npz", **members(**changes))
    message = message_of("mine", tmp_path)
    assert expected in message
    assert str(tmp_path / "mine.npz") in message


def test_truncated_npz(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **members())
    path.write_bytes(path.read_bytes()[:-500])
    assert f"{path} is no npz archive, or is cut short" in message_of("mine", tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_flipped_bytes(tmp_path, save):
    path = tmp_path / "mine.npz"
    save(path, **members())
    content = bytearray(path.read_bytes())
    content[400:420] = bytes(255 - byte for byte in content[400:420])
    path.write_bytes(content)
    assert f"{path}: train_images is damaged (" in message_of("mine", tmp_path)


def test_npy_under_the_name_of_an_npz(tmp_path):
    stream = io.BytesIO()
    np.save(stream, pixels(3))
    (tmp_path / "mine.npz").write_bytes(stream.getvalue())
    assert "is no npz archive" in message_of("mine", tmp_path)


@pytest.fixture
def any_checksum(monkeypatch):
    for module in ("cifar", "svhn"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, _: os.path.isfile(path)
        )


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.usefixtures("any_checksum")
def test_torchvision_layouts(tmp_path, name):
    images = WRITERS[name](tmp_path)
    data = load_dataset(name, str(tmp_path))
    assert np.array_equal(data.train.images.numpy(), images)
    labels = np.arange(len(images)) % data.info.classes
    if name == "svhn":
        labels = (labels + 1) % 10
    assert data.train.labels.tolist() == labels.tolist()
    assert data.info.train_size == len(images)
    assert data.info.mean == dataset_info(name).mean


@pytest.mark.parametrize("packed", [0, 2, 4])
def test_idx_files_packed_by_gzip_are_read(tmp_path, packed):
    images = write_mnist(tmp_path, "FashionMNIST")
    raw = tmp_path / "FashionMNIST" / "raw"
    for path in sorted(raw.iterdir())[:packed]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    before = sorted(raw.iterdir())
    data = load_dataset("fashion-mnist", str(tmp_path))
    assert np.array_equal(data.train.images.numpy(), images)
    assert sorted(raw.iterdir()) == before
    before[0].write_bytes(before[0].read_bytes()[:100])
    assert str(before[0]) in message_of("fashion-mnist", tmp_path)


def test_files_in_the_wrong_place_are_told_where_they_belong(tmp_path):
    write_mnist(tmp_path, "flat")
    wanted = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    move = f"move {tmp_path}/flat/raw/train-images-idx3-ubyte to {wanted}"
    assert move in message_of("mnist", tmp_path)
    write_mnist(tmp_path, "MNIST")
    told = message_of("mnist", tmp_path / "MNIST" / "raw")
    assert f"pass --data-dir {tmp_path}, which holds that folder" in told
    write_svhn(tmp_path / "MNIST")
    assert f"move {tmp_path}/MNIST/train_32x32.mat to" in message_of("svhn", tmp_path)
    (tmp_path / "cifar-100-python.tar.gz").touch()
    assert f"unpack {tmp_path}/cifar-100-python.tar.gz" in message_of("cifar100", tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_missing_files(tmp_path, name):
    folder, (file, *_) = LAYOUTS[name]
    message = message_of(name, tmp_path)
    assert message.startswith(f"{name} is missing or damaged in {tmp_path} (there is no ")
    assert f"{tmp_path / folder / file}); pass --download, or put {name}.npz there" in message
    assert "--download" not in message_of(name, tmp_path, None)


def test_files_with_another_checksum(tmp_path):
    write_cifar10(tmp_path)
    message = message_of("cifar10", tmp_path)
    assert "cifar10 is missing or damaged" in message
    assert f"{tmp_path}/cifar-10-batches-py/data_batch_1 is not the original file" in message


@pytest.mark.parametrize("kept", [0, 10, 900])
def test_truncated_idx(tmp_path, kept):
    write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:kept])
    message = message_of("mnist", tmp_path)
    assert "mnist is missing or damaged" in message
    assert str(path) in message


@pytest.mark.usefixtures("any_checksum")
def test_truncated_pickle_and_mat(tmp_path):
    write_cifar10(tmp_path)
    write_svhn(tmp_path)
    for path in (tmp_path / "cifar-10-batches-py" / "data_batch_2", tmp_path / "train_32x32.mat"):
        path.write_bytes(path.read_bytes()[:300])
    assert "cifar10 is missing or damaged" in message_of("cifar10", tmp_path)
    assert "svhn is missing or damaged" in message_of("svhn", tmp_path)


@pytest.mark.parametrize("download", [False, True])
def test_download_is_passed_only_when_asked(tmp_path, monkeypatch, download):
    asked = []

    def reader(root, download, **_):
        asked.append(download)
        raise RuntimeError("Error downloading a file:\nTried a mirror")

    monkeypatch.setattr(torchvision.datasets, "MNIST", reader)
    message = message_of("mnist", tmp_path, download)
    assert asked == [True] * download
    assert ("delete what is damaged there" in message) == download
