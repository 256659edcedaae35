"""The table of data sets: rows, names and their errors, without torch."""

import subprocess
import sys

import pytest

from sparse_engine.data.catalog import TABLE, check_name, is_known, npz_path
from sparse_engine.data.load import dataset_info
from sparse_engine.errors import InputError


def test_import_brings_no_torch_or_numpy():
    code = (
        "import sys, sparse_engine.data.catalog as c; c.check_name('imagenet');"
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.name)
def test_rows_are_consistent(row):
    assert is_known(row.name)
    assert dataset_info(row.name) is row
    assert len(row.mean) == len(row.std) == row.channels
    assert min(row.std) > 0
    assert row.padding < min(row.height, row.width)


def test_sizes_of_the_named_sets():
    digits, imagenet = dataset_info("digits"), dataset_info("imagenet", "/nowhere")
    assert (digits.train_size, digits.test_size, digits.height) == (1437, 360, 8)
    assert (imagenet.classes, imagenet.channels, imagenet.kind) == (1000, 3, "folder")
    assert dataset_info("cifar10").padding_mode == "reflect"
    assert not dataset_info("svhn").flip


def test_names_that_need_no_row(tmp_path):
    (tmp_path / "mine.npz").touch()
    check_name("mine", str(tmp_path))
    check_name("imagefolder:/some/where")
    assert npz_path("mine", str(tmp_path)) == tmp_path / "mine.npz"
    assert npz_path("mine", None) is None
    assert not is_known("mine")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar01", "unknown data set 'cifar01'; did you mean 'cifar10'?"),
        ("imagefolder:", "'imagefolder:' names no folder; write imagefolder:PATH"),
        ("zzzz", "unknown data set 'zzzz'; choose from digits, mnist, "),
    ],
)
def test_bad_names(name, message):
    with pytest.raises(InputError) as caught:
        dataset_info(name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_nearest_archive_is_offered(tmp_path):
    (tmp_path / "flowers.npz").touch()
    expected = f"there is no {tmp_path / 'flower.npz'}; did you mean 'flowers'"
    with pytest.raises(InputError) as caught:
        check_name("flower", str(tmp_path))
    assert expected in str(caught.value)
