"""Data sets by name: where they are looked for, and how they must be."""

import numpy as np
import pytest
import torch
import torchvision
from data_files import (
    cifar10_members,
    members,
    message_of,
    pixels,
    write_cifar10,
    write_idx,
    write_mnist,
)

from sparse_engine.data.load import dataset_info, load_dataset


def test_digits_need_no_folder_and_match_the_table():
    data = load_dataset("digits", None)
    assert data.info == dataset_info("digits")
    scaled = data.train.images.double() / 255
    assert scaled.mean().item() == pytest.approx(data.info.mean[0], abs=0.005)
    assert scaled.std().item() == pytest.approx(data.info.std[0], abs=0.005)


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
