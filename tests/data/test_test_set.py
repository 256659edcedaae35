"""Test sets of other files, in the sizes and classes of a run."""

from dataclasses import replace

import numpy as np
import pytest
from data_files import members, pixels, write_pictures

from sparse_engine.data.catalog import TABLE, DatasetInfo
from sparse_engine.data.test_set import load_test_set
from sparse_engine.errors import InputError

NAMES = ("ant", "bee", "cat")
RUN = DatasetInfo("own", 3, 3, 8, 10, 6, 3, (0.5,) * 3, (0.5,) * 3, class_names=NAMES)
UNNAMED = replace(RUN, class_names=())


def archive(path, **changes):
    arrays = {"images": pixels(4, 8, 10, 3), "labels": np.array([[0], [1], [1], [0]]), **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return str(path)


@pytest.mark.parametrize("info", [RUN, UNNAMED], ids=["named", "unnamed"])
def test_arrays_of_a_file(tmp_path, info):
    data = load_test_set(archive(tmp_path / "new.npz"), None, info)
    assert (data.info, data.test.labels.tolist()) == (info, [0, 1, 1, 0])
    assert data.test.images.shape == (4, 3, 8, 10)
    np.savez(tmp_path / "like.npz", **members())
    assert load_test_set("like", str(tmp_path), info).test.labels.tolist() == [0, 1, 1]


def test_names_of_a_file_lead_to_the_runs_labels(tmp_path):
    path = archive(tmp_path / "new.npz", class_names=np.array(["cat", "ant"]))
    assert load_test_set(path, None, RUN).test.labels.tolist() == [2, 0, 0, 2]
    assert load_test_set(path, None, UNNAMED).test.labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("inner", ["", "test"])
def test_class_folders_of_a_part_of_the_classes(tmp_path, inner):
    write_pictures(tmp_path / "new" / inner, {"cat": 2, "bee": 1}, size=(8, 10))
    data = load_test_set(str(tmp_path / "new"), None, RUN)
    assert sorted(data.test.labels.tolist()) == [1, 2, 2]
    assert data.test.images.shape == (3, 3, 8, 10)
    files = load_test_set(f"imagefolder:{tmp_path / 'new'}", None, replace(RUN, kind="folder"))
    assert len(files.test.paths) == 3
    numbers = {"0": 1, "2": 1}
    write_pictures(tmp_path / "numbers", numbers, size=(8, 10))
    assert load_test_set(str(tmp_path / "numbers"), None, UNNAMED).test.labels.tolist() == [0, 2]


def write_folder(tmp_path, name, size):
    write_pictures(tmp_path / "folder", {name: 1}, size=size)
    return str(tmp_path / "folder")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: archive(p / "x.npz", images=pixels(4, 3, 9, 9)),
            "3x9x9 .* the run's 3x8x10",
        ),
        (
            lambda p: archive(p / "x.npz", labels=np.array([0, 1, 2, 3])),
            "up to 3; .* 0 to 2",
        ),
        (lambda p: archive(p / "x.npz", labels=None), "has no array 'labels'"),
        (lambda p: archive(p / "x.npz", labels=np.ones((4, 2), int)), "multi-label"),
        (
            lambda p: write_folder(p, "dog", (8, 10)),
            r"'dog', which .* \(its 3 classes: ant",
        ),
        (lambda p: write_folder(p, "ant", (9, 10)), "0.png has 10 x 9 pixels, .* 10 x 8; resize"),
        (lambda p: "digits", "test set 'digits' has a class '0'"),
        (lambda p: str(p / "none.npz"), "none.npz' does not exist"),
        (lambda p: f"imagefolder:{p}/none", "there is no folder"),
        (lambda p: "nothing", r"unknown data set 'nothing'.*; or the path of an .npz file"),
    ],
)
def test_what_does_not_fit(make, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_test_set(make(tmp_path), str(tmp_path), RUN)


def test_a_named_set_of_other_classes():
    with pytest.raises(InputError, match="has 10 classes, and the run 3"):
        load_test_set("digits", None, UNNAMED)
    assert len(load_test_set("digits", None, TABLE["digits"]).test) == 360
