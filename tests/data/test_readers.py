"""Reading data sets from npz archives, torchvision's layouts and scikit-learn."""

import io
import os
import pickle
import struct

import numpy as np
import pytest
import scipy.io
import torch
import torchvision

from sparse_engine.data.load import dataset_info, load_dataset
from sparse_engine.data.readers import read_digits
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


def message_of(name, data_dir, download=False):
    with pytest.raises(InputError) as caught:
        load_dataset(name, None if data_dir is None else str(data_dir), download)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- digits -------------------------------------------------------------------------------------


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


def test_digits_need_no_folder_and_match_the_table():
    data = load_dataset("digits", None)
    assert data.info == dataset_info("digits")
    scaled = data.train.images.double() / 255
    assert scaled.mean().item() == pytest.approx(data.info.mean[0], abs=0.005)
    assert scaled.std().item() == pytest.approx(data.info.std[0], abs=0.005)


# --- npz ----------------------------------------------------------------------------------------


def test_own_npz_derives_its_info(tmp_path):
    arrays = members()
    np.savez(tmp_path / "mine.npz", **arrays)
    data = load_dataset("mine", str(tmp_path))
    info = data.info
    assert (info.classes, info.channels, info.height, info.width) == (3, 3, 8, 10)
    assert (info.train_size, info.test_size) == (6, 3)
    assert (info.padding, info.padding_mode, info.flip, info.kind) == (1, "zeros", False, "arrays")
    scaled = arrays["train_images"] / 255
    assert info.mean == pytest.approx(scaled.mean((0, 2, 3)))
    assert info.std == pytest.approx(scaled.std((0, 2, 3)))
    assert data.train.labels.dtype == torch.int64
    assert dataset_info("mine", str(tmp_path)) == info


def test_a_channel_of_one_value_has_deviation_one(tmp_path):
    images = np.full((6, 1, 8, 8), 7, np.uint8)
    np.savez(tmp_path / "flat.npz", **members(train_images=images, test_images=images[:3]))
    assert load_dataset("flat", str(tmp_path)).info.std == (1.0,)


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
        ({"train_labels": np.zeros((6, 3), int)}, "train_labels is int64 of shape [6, 3]"),
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


def cifar10_members(**changes):
    arrays = {
        "train_images": pixels(20, 32, 32, 3),
        "train_labels": np.arange(20) % 10,
        "test_images": pixels(10, 32, 32, 3),
        "test_labels": np.arange(10),
    }
    return {**arrays, **changes}


def test_named_npz_keeps_the_conventions_of_the_table(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **cifar10_members())
    info = load_dataset("cifar10", str(tmp_path)).info
    assert (info.padding_mode, info.mean) == ("reflect", dataset_info("cifar10").mean)
    assert (info.train_size, info.test_size) == (20, 10)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"train_images": pixels(20, 28, 28), "test_images": pixels(10, 28, 28)},
            "expected images of 3x32x32 (channels x height x width), found 1x28x28",
        ),
        (
            {"train_labels": np.arange(20) % 5, "test_labels": np.arange(10) % 5},
            "expected 10 classes, found 5",
        ),
        ({"train_labels": np.arange(20)}, "train_labels holds 19; expected labels 0 to 9"),
    ],
)
def test_named_npz_unlike_the_table(tmp_path, changes, expected):
    np.savez(tmp_path / "cifar10.npz", **cifar10_members(**changes))
    assert expected in message_of("cifar10", tmp_path)


# --- torchvision --------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", WRITERS)
def test_missing_files(tmp_path, name):
    message = message_of(name, tmp_path)
    assert message.startswith(f"{name} is missing or damaged in {tmp_path} (Dataset not found")
    assert message.endswith(f"pass --download, or put {name}.npz there")


def test_files_with_another_checksum(tmp_path):
    write_cifar10(tmp_path)
    assert "cifar10 is missing or damaged" in message_of("cifar10", tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 900])
def test_truncated_idx(tmp_path, kept):
    write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:kept])
    assert "mnist is missing or damaged" in message_of("mnist", tmp_path)


@pytest.mark.usefixtures("any_checksum")
def test_truncated_pickle_and_mat(tmp_path):
    write_cifar10(tmp_path)
    write_svhn(tmp_path)
    for path in (tmp_path / "cifar-10-batches-py" / "data_batch_2", tmp_path / "train_32x32.mat"):
        path.write_bytes(path.read_bytes()[:300])
    assert "cifar10 is missing or damaged" in message_of("cifar10", tmp_path)
    assert "svhn is missing or damaged" in message_of("svhn", tmp_path)


def test_idx_of_another_size(tmp_path):
    write_mnist(tmp_path, "MNIST")
    for split in ("train", "t10k"):
        count = 20 if split == "train" else 10
        path = tmp_path / "MNIST" / "raw" / f"{split}-images-idx3-ubyte"
        write_idx(path, pixels(count, 20, 20))
    assert "expected images of 1x28x28" in message_of("mnist", tmp_path)


def test_npz_goes_before_torchvision(tmp_path):
    write_cifar10(tmp_path)
    arrays = cifar10_members()
    np.savez(tmp_path / "cifar10.npz", **arrays)
    images = load_dataset("cifar10", str(tmp_path)).train.images
    assert np.array_equal(images.numpy(), arrays["train_images"].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("download", [False, True])
def test_download_is_passed_only_when_asked(tmp_path, monkeypatch, download):
    asked = []

    def reader(root, train, download):
        asked.append(download)
        raise RuntimeError("Error downloading a file:\nTried a mirror")

    monkeypatch.setattr(torchvision.datasets, "MNIST", reader)
    message = message_of("mnist", tmp_path, download)
    assert asked == [download]
    assert ("delete what is damaged there" in message) == download


# --- folders ------------------------------------------------------------------------------------


def test_data_dir_that_does_not_exist(tmp_path):
    message = message_of("cifar10", tmp_path / "none")
    assert message == f"--data-dir {tmp_path / 'none'} is not a folder; make it or name another"
    assert "is not a folder" in message_of("digits", tmp_path / "none")
    assert "is not a folder" in message_of("imagenet", tmp_path / "none", download=True)


def test_data_dir_is_made_for_a_download(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda *_, **__: write_and_fail())
    message_of("mnist", tmp_path / "new" / "folder", download=True)
    assert (tmp_path / "new" / "folder").is_dir()
    (tmp_path / "file").touch()
    assert "cannot be made" in message_of("mnist", tmp_path / "file" / "folder", download=True)


def write_and_fail():
    raise RuntimeError("no network here")


def test_files_need_a_data_dir():
    assert "pass --data-dir" in message_of("cifar10", None)
    assert "pass --data-dir" in message_of("imagenet", None)
