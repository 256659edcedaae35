"""One image of a file, decoded: whatever is wrong with it is one line that names the file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from sparse_engine.errors import UnreadableFile, first_line

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
# An image a pixel wide and as high as a tower would be enlarged to gigabytes.
_NARROWEST = 1000


def read_image(path: str, transform: Callable[[Image.Image], T]) -> T:
    """Return what a transform makes of an image file, in RGB.

    Raises:
        UnreadableFile: it is no image, damaged, of more pixels than Pillow takes (179 million,
            against what only claims to be an image), or so narrow that it cannot be resized.
    """
    from PIL import UnidentifiedImageError

    try:
        # Pillow warns of what is large, old or odd in a file: decoded it is, or not.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = _decoded(path)
            if max(picture.size) > _NARROWEST * min(picture.size):
                raise ValueError("{} x {} pixels, too narrow".format(*picture.size))
            return transform(picture)
    except UnidentifiedImageError:
        reason = "of no format that Pillow knows"
    except FileNotFoundError:
        raise UnreadableFile(f"{path} is gone; the data may not change during a run") from None
    # Bytes that are no image make decoders raise almost anything, struct.error and KeyError too.
    except Exception as error:
        reason = first_line(error)
    raise UnreadableFile(f"{path} is not a readable image ({reason}); replace or remove it")


def _decoded(path: str) -> Image.Image:
    """Return an image in RGB, as torchvision's folder data sets read it."""
    from PIL import Image

    with open(path, "rb") as file:
        is_tiff = file.read(2) in (b"II", b"MM")
        file.seek(0)
        if not is_tiff:
            return Image.open(file).convert("RGB")
        with _silent_libraries():
            return Image.open(file).convert("RGB")


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """Keep what libtiff prints, a line for every tag it does not know, from standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
