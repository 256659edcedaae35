"""What a user is told of data that can be used, and perhaps is not as it was meant."""

import numpy as np
import pytest
from data_files import members, pixels

from sparse_engine.data.load import load_dataset
from sparse_engine.data.notes import epoch_note


def notes(tmp_path, **changes):
    np.savez(tmp_path / "mine.npz", **members(**changes))
    return load_dataset("mine", str(tmp_path)).notes


def labels(train, test):
    return {"train_labels": np.array(train), "test_labels": np.array(test)}


NAMES = np.array(["ant", "bee", "cat", "dog"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (labels([1, 2, 3, 1, 2, 3], [1, 2, 3]), "labels run from 1 to 3 and class 0 has no images"),
        (labels([0, 1, 7, 0, 1, 7], [0, 1, 7]), "8 classes, of which 2, 3, 4, 5, 6 have no images"),
        (labels([0, 1, 1, 0, 1, 1], [0, 2, 1]), "images of classes 2, which training never sees"),
        (
            {**labels([0, 1, 1, 0, 1, 1], [0, 2, 1]), "class_names": NAMES},
            "4 classes, of which 3 ('dog') have no images",
        ),
        (
            {"val_images": pixels(2, 3, 8, 10), "val_labels": np.array([0, 1])},
            "val_images and val_labels are not read; training has train_images",
        ),
        ({"weights": np.ones(3)}, "not read: weights; known are train_images, "),
    ],
)
def test_what_is_told(changes, message, tmp_path):
    assert any(message in note for note in notes(tmp_path, **changes)), message


def test_nothing_is_told_of_usual_data(tmp_path):
    assert notes(tmp_path, class_names=NAMES[:3]) == ()
    assert load_dataset("mine", str(tmp_path)).info.class_names == ("ant", "bee", "cat")
    assert load_dataset("digits", None).notes == ()


@pytest.mark.parametrize(
    ("images", "batch_size", "message"),
    [
        (200, 128, "72 of 200 training images (36%), others each time, for a batch is always full; "
         "--batch-size 100 leaves out none"),
        (1000, 60, None),
        (50000, 128, None),
        (7, 4, "--batch-size 3 leaves out 1"),
    ],
)  # fmt: skip
def test_images_that_an_epoch_leaves_out(images, batch_size, message):
    note = epoch_note(images, batch_size)
    assert note is None if message is None else message in note
