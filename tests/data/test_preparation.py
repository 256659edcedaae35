"""Image size, augmentation and normalisation that a user chooses."""

from dataclasses import replace

import pytest
import torch
from data_files import write_pictures

from sparse_engine.data.catalog import TABLE
from sparse_engine.data.folder import FolderLoader, folder_evaluation_batches
from sparse_engine.data.load import dataset_info, load_dataset
from sparse_engine.data.loader import ArrayLoader
from sparse_engine.data.preparation import Preparation
from sparse_engine.errors import InputError


def test_nothing_asked_changes_nothing():
    assert Preparation().applied(TABLE["cifar10"]) is TABLE["cifar10"]


def test_folders_in_a_size_and_normalisation_of_ones_own(tmp_path):
    for split in ("train", "val"):
        write_pictures(tmp_path / split, {"ant": 2, "bee": 2}, size=(20, 30))
    wanted = Preparation(image_size=16, augmentation="off", mean="0.5", std="0.1,0.2,0.3")
    data = load_dataset(f"imagefolder:{tmp_path}", None, preparation=wanted)
    info = data.info
    assert (info.height, info.width, info.augment) == (16, 16, False)
    assert (info.mean, info.std) == ((0.5,) * 3, (0.1, 0.2, 0.3))
    assert info.class_names == ("ant", "bee")
    loader = FolderLoader(data.train, info, 4, "cpu", seed=0, workers=0)
    images, labels = loader.batch(0)
    (centres, own), *_ = folder_evaluation_batches(data.train, info, 4, "cpu", workers=0)
    for image, label in zip(images, labels):
        assert any(torch.equal(image, c) and label == y for c, y in zip(centres, own))
    whole = replace(info, augment=True, crop_scale=1.0, flip=False)
    assert not torch.equal(
        FolderLoader(data.train, whole, 4, "cpu", seed=0, workers=0).batch(0)[0], images
    )


def test_arrays_without_augmentation_or_flips():
    data = load_dataset("digits", None, preparation=Preparation(augmentation="off", std="0.5"))
    assert data.info.std == (0.5,)
    images, _ = ArrayLoader(data.train, data.info, 50, "cpu", seed=0).batch(0)
    pictures = {image.numpy().tobytes() for image in data.train.images}
    back = (images * 0.5 + data.info.mean[0]) * 255
    assert {image.numpy().tobytes() for image in back.round().to(torch.uint8)} <= pictures
    assert dataset_info("cifar10", None, Preparation(flip="off")).flip is False
    assert dataset_info("digits", None, Preparation(flip="on")).flip is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 16}, "--image-size is for image folders, and the images of 'digits' are"),
        ({"crop_scale": 0.5}, "--crop-scale is for image folders"),
        ({"mean": "0.5,x"}, "--mean takes numbers such as 0.5 or 0.49,0.48,0.45, found '0.5,x'"),
        (
            {"mean": "123.7"},
            r"--mean is of pixels scaled to \[0, 1\], found 123.7; give numbers fr",
        ),
        ({"std": "0"}, r"--std is of pixels scaled to \[0, 1\], found 0; give numbers above 0"),
        ({"std": "nan"}, "--std is of pixels"),
        ({"mean": "0.1,0.2,0.3"}, "--mean has 3 numbers, and the images of 'digits' 1 channels"),
        ({"augmentation": "off", "flip": "on"}, "--flip on changes training images, and --augm"),
    ],
)
def test_what_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        load_dataset("digits", None, preparation=Preparation(**settings))


def test_imagenet_in_arrays_has_one_size():
    Preparation(image_size=64).check("imagenet")
    with pytest.raises(InputError, match="images of 'imagenet' are arrays of one size"):
        Preparation(image_size=64).applied(replace(TABLE["imagenet"], kind="arrays"))
