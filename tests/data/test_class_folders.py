"""Which files of a folder are images of which class, and which are left out."""

import os
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from sparse_engine.data.class_folders import list_classes
from sparse_engine.errors import InputError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_order_is_torchvisions(tmp_path):
    names = ("b/1.png", "b/10.JPG", "b/2.WebP", "b/x-y/1.png", "b/x/1.png", "b/x/notes.txt")
    touch(tmp_path / "train", *names, "a/z.tiff", "B b/ü.ppm", "readme.txt")
    (tmp_path / "train" / "link").symlink_to(tmp_path / "train" / "a")
    paths, labels, classes = list_classes(tmp_path / "train")
    theirs = ImageFolder(tmp_path / "train")
    assert list(zip(paths, labels)) == [(str(path), label) for path, label in theirs.samples]
    assert classes == theirs.classes


def test_hidden_folders_and_files_are_left_out_and_named(tmp_path, caplog):
    hidden = (".ipynb_checkpoints/1.png", "__MACOSX/a/1.png", "a/._1.png", "a/.git/1.png")
    touch(tmp_path, "a/1.png", "b/1.png", ".DS_Store", "a/.DS_Store", *hidden)
    for _ in range(2):
        paths, labels, classes = list_classes(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in paths] == ["a/1.png", "b/1.png"]
    assert (labels, classes) == ([0, 1], ["a", "b"])
    (line,) = caplog.messages
    assert line.startswith(f"left out of {tmp_path}: .ipynb_checkpoints, __MACOSX, a/._1.png and 1")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: (root / "c").symlink_to("nowhere"), "/c is a link to nowhere; mend or"),
        (lambda root: (root / "a/2.png").symlink_to("gone"), "/a/2.png is a link to nowhere"),
        (lambda root: os.mkfifo(root / "a/2.png"), "/a/2.png is no file; remove it"),
        (lambda root: touch(root, "c/._1.png"), "no valid file for the classes c in"),
        (lambda root: (root / "a/up").symlink_to(".."), None),
    ],
)
def test_what_cannot_be_an_image(tmp_path, make, words):
    touch(tmp_path, "a/1.png", "b/1.png")
    make(tmp_path)
    if words is None:  # a circle of links is walked once
        assert len(list_classes(tmp_path)[0]) == 3
        return
    with pytest.raises(InputError, match=words):
        list_classes(tmp_path)


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.png")
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"/a cannot be read: Permission denied"):
        list_classes(tmp_path)
