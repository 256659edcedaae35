"""Folders of images, one a class: which files there are, and which are left out, in so many words.

The order of classes and files is that of torchvision's ImageFolder.
"""

import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from sparse_engine.errors import InputError
from sparse_engine.installed import require

# What systems and programs keep beside one's files; so does whatever begins with a dot.
_NOT_OURS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")


def list_classes(folder: Path) -> tuple[list[str], list[int], list[str]]:
    """Return the paths of all images below a folder, the class of each, and the classes' names.

    Hidden folders and files are left out, and the log says so.

    Raises:
        InputError: there is no class, a class without images, a link to nowhere, an image that is
            no file, or a folder that cannot be read.
    """
    require("reading folders of images", "torchvision", "PIL")
    left_out: list[str] = []
    classes = sorted(entry.name for entry in _entries(str(folder), left_out) if entry.is_dir())
    if not classes:
        raise InputError(
            f"Couldn't find any class folder in {folder}; put one folder of images a class there"
        )
    paths: list[str] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(classes):
        below = sorted(_images_below(str(folder / name), left_out, ()))
        own = [os.path.join(place, file) for place, files in below for file in sorted(files)]
        paths += own
        labels += [label] * len(own)
        if not own:
            empty.append(name)
    if left_out:
        _tell_once(f"left out of {folder}: {_in_words(sorted(left_out), folder)}")
    if empty:
        raise InputError(
            f"Found no valid file for the classes {', '.join(empty)} in {folder}; put images there "
            f"({', '.join(_endings())}), or remove the folders"
        )
    return paths, labels, classes


def _images_below(
    folder: str, left_out: list[str], above: tuple[str, ...]
) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder with the names of its images; links are followed, but not in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    files = []
    for entry in _entries(folder, left_out):
        if entry.is_dir():
            yield from _images_below(entry.path, left_out, (*above, real))
        elif _is_image(entry.name):
            if not entry.is_file():
                raise InputError(f"{entry.path} is no file; remove it")
            files.append(entry.name)
    yield folder, files


def _entries(folder: str, left_out: list[str]) -> Iterator[os.DirEntry[str]]:
    """Yield what lies in a folder and is not hidden; note what is, if it could be a class's."""
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
        for entry in listed:
            if entry.name.startswith(".") or entry.name in _NOT_OURS:
                if _is_image(entry.name) or entry.is_dir():
                    left_out.append(entry.path)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                raise InputError(f"{entry.path} is a link to nowhere; mend or remove it")
            else:
                yield entry
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}; it holds images") from None


def _is_image(name: str) -> bool:
    return name.lower().endswith(_endings())


@functools.cache
def _endings() -> tuple[str, ...]:
    """Return the endings of the files that torchvision takes for images."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return IMG_EXTENSIONS


def _in_words(paths: list[str], folder: Path) -> str:
    names = [os.path.relpath(path, folder) for path in paths[:3]]
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"{', '.join(names)}{more} (hidden; rename what is meant as a class or an image)"


@functools.cache
def _tell_once(line: str) -> None:
    logging.getLogger(__name__).warning("%s", line)
