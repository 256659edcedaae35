"""Corrupted sets: read where the released files are, made where they are not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparse_engine.data.arrays import DataSet, ImageArrays
from sparse_engine.data.catalog import TABLE
from sparse_engine.errors import InputError
from sparse_engine.evaluation.robustness.assess import assess
from sparse_engine.evaluation.robustness.corrupted import BATCH_SIZE, corrupted_sets
from sparse_engine.evaluation.robustness.corruptions import FAMILIES, corrupt
from sparse_engine.evaluation.robustness.options import Options

SIZE = 4


def cifar(name="cifar10", count=SIZE):
    """Return a data set of a few random images in the shape of CIFAR's."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = ImageArrays(images, torch.arange(count) % 10)
    return DataSet(replace(TABLE[name], test_size=count), split, split)


@pytest.fixture
def released(tmp_path):
    """Write CIFAR-10-C in the layout of the release; image i of a family holds value i."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    for number, family in enumerate(FAMILIES):
        values = np.arange(5 * SIZE, dtype=np.uint8) + number
        images = np.tile(values[:, None, None, None], (1, 32, 32, 3))
        images[:, :, :, 2] = 255
        np.save(folder / f"{family}.npy", images)
    np.save(folder / "labels.npy", np.arange(5 * SIZE) % 10)
    return folder


def test_released_files_are_read_by_severity(released):
    source, sets = corrupted_sets(cifar(), str(released.parent), (1, 4), workers=0)
    assert source == f"files in {released}"
    assert [(s.family, s.severity) for s in sets] == [(f, s) for f in FAMILIES for s in (1, 4)]
    number = list(FAMILIES).index("fog")
    fog = next(s for s in sets if (s.family, s.severity) == ("fog", 4))
    ((pixels, labels),) = fog.stream
    assert pixels.shape == (SIZE, 3, 32, 32)
    assert (pixels[:, 0, 0, 0] * 255).round().tolist() == [number + 12 + i for i in range(SIZE)]
    assert pixels[:, 2].min() == 1
    assert labels.tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("folder", [None, "elsewhere"])
def test_without_files_they_are_made_from_the_test_split(folder, tmp_path):
    data_dir = folder and str(tmp_path / folder)
    data = cifar()
    source, sets = corrupted_sets(data, data_dir, (2,), workers=0)
    assert source == "made from the test split"
    assert len(sets) == len(FAMILIES)
    snow = next(s for s in sets if s.family == "snow")
    ((pixels, labels),) = snow.stream
    wanted = corrupt(data.test.images.float() / 255, "snow", 2, seed=0)
    # A value in the middle of two grey levels may be rounded either way.
    torch.testing.assert_close(pixels, wanted, atol=1.01 / 255, rtol=0)
    assert labels.tolist() == [0, 1, 2, 3]


def test_a_second_pass_and_the_next_batch():
    _, sets = corrupted_sets(cifar(count=BATCH_SIZE + 3), None, (1,), workers=0)
    _, same = corrupted_sets(cifar(count=BATCH_SIZE + 3), None, (1,), workers=0)
    first, again = list(sets[0].stream), list(same[0].stream)
    assert [len(y) for _, y in first] == [BATCH_SIZE, 3]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    images = cifar(count=BATCH_SIZE + 3).test.images
    noise = [first[0][0][:3] - images[:3] / 255, first[1][0] - images[-3:] / 255]
    assert not torch.allclose(*noise)


def test_files_of_another_data_set_are_left_alone(released):
    source, _ = corrupted_sets(cifar("svhn"), str(released.parent), (1,), workers=0)
    assert source == "made from the test split"


def test_files_are_not_looked_at_unless_asked_for(released):
    (released / "labels.npy").unlink()
    assert assess([], cifar(), str(released.parent), Options(), 4, 0) == {}


def save(name, array):
    return lambda folder: np.save(folder / f"{name}.npy", array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "fog.npy").unlink(), r"fog.npy does not exist; unpack the whole released"),
        (lambda f: (f / "labels.npy").unlink(), r"labels.npy does not exist"),
        (lambda f: (f / "snow.npy").write_bytes(b"?"), r"snow.npy is damaged \(.*unpack it again"),
        (
            save("snow", np.zeros((5 * SIZE, 32, 31, 3), np.uint8)),
            r"snow.npy is uint8 of shape \[20, 32, 31, 3\]; expected uint8 of shape \[20, 32, 32,",
        ),
        (save("snow", np.zeros((SIZE, 32, 32, 3), np.uint8)), r"of shape \[4, 32, 32, 3\]; exp"),
        (save("snow", np.zeros((20, 32, 32, 3))), r"snow.npy is float64 of shape"),
        (save("labels", np.zeros(20)), r"labels.npy is float64 of shape \[20\]; expected integ"),
        (save("labels", np.zeros(0, int)), r"labels.npy is int64 of shape \[0\]; expected integ"),
        (save("labels", np.zeros(19, int)), r"labels.npy holds 19 labels; expected five"),
        (save("labels", np.arange(20)), r"labels.npy holds labels 0 to 19; expected 0 to 9"),
    ],
)
def test_files_that_cannot_be_used(released, damage, message):
    damage(released)
    with pytest.raises(InputError, match=message):
        corrupted_sets(cifar(), str(released.parent), (1,), workers=0)
