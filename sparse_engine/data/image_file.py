"""One image of a file, decoded: whatever is wrong with it is one line that names the file."""

import warnings
from collections.abc import Callable
from typing import TypeVar

from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import default_loader

from sparse_engine.errors import UnreadableFile, first_line

T = TypeVar("T")
# An image a pixel wide and as high as a tower would be enlarged to gigabytes.
_NARROWEST = 1000


def read_image(path: str, transform: Callable[[Image.Image], T]) -> T:
    """Return what a transform makes of an image file, in RGB.

    Raises:
        UnreadableFile: it is no image, damaged, of more pixels than Pillow takes (179 million,
            against what only claims to be an image), or so narrow that it cannot be resized.
    """
    try:
        # Pillow warns of what is large, old or odd in a file: decoded it is, or not.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = default_loader(path)
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
