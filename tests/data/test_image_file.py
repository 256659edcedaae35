"""Damaged and odd image files of every format: an image, or one line that names the file."""

import io
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from sparse_engine.data.catalog import TABLE
from sparse_engine.data.folder import evaluation_transform, training_transform
from sparse_engine.data.image_file import read_image
from sparse_engine.errors import UnreadableFile

# By extension, as torchvision's folder data sets know them.
FORMATS = {
    "jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "ppm": "PPM", "bmp": "BMP", "pgm": "PPM",
    "tif": "TIFF", "tiff": "TIFF", "webp": "WEBP",
}  # fmt: skip
MODES = {"PPM": "L", "PNG": "P", "TIFF": "RGB"}
TRANSFORMS = training_transform(TABLE["cifar10"]), evaluation_transform(TABLE["cifar10"])


def images():
    """Return the bytes of small images by extension, more than one of each TIFF."""
    pixels = np.random.RandomState(0).randint(0, 256, (13, 17, 3), dtype=np.uint8)
    for extension, kind in FORMATS.items():
        for options in ({}, {"compression": "tiff_lzw"}) if kind == "TIFF" else ({},):
            file = io.BytesIO()
            image = Image.fromarray(pixels).convert(MODES.get(kind, "RGB"))
            image.save(file, kind, **options)
            yield extension, file.getvalue()


def damaged(content, draw):
    """Return the bytes of a file that is cut short, overwritten, or shifted."""
    data = bytearray(content)
    place = draw.randrange(len(data))
    match draw.randrange(4):
        case 0:
            return data[:place]
        case 1:
            for _ in range(draw.randint(1, 12)):
                data[draw.randrange(len(data))] = draw.randrange(256)
        case 2:
            for _ in range(draw.randint(1, 6)):
                data[draw.randrange(min(60, len(data)))] = draw.choice((0, 127, 128, 255))
        case 3:
            data[place : place + draw.randint(0, 9)] = draw.randbytes(draw.randint(0, 40))
    return data


def fuzz(folder, number, capfd):
    """Read files of damaged images; return how many could not be read."""
    draw, lines, seeds = random.Random(0), [], list(images())
    for k in range(number):
        extension, content = seeds[k % len(seeds)]
        path = folder / f"image.{extension}"
        path.write_bytes(damaged(content, draw))
        try:
            assert read_image(str(path), TRANSFORMS[k % 2]).shape == (3, 32, 32)
        except UnreadableFile as error:
            lines.append(str(error))
    assert capfd.readouterr() == ("", "")
    assert all(line.startswith(str(folder)) and "\n" not in line for line in lines)
    return len(lines)


def test_damaged_files(tmp_path, capfd):
    assert 150 < fuzz(tmp_path, 300, capfd) < 290


@pytest.mark.slow
def test_many_damaged_files(tmp_path, capfd):
    print(fuzz(tmp_path, 30_000, capfd))


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("content", [b"", b"words\n", b"P5\n9999999 9999999\n255\n", b"BM" * 40])
def test_files_that_are_no_image(tmp_path, extension, content):
    path = tmp_path / f"x.{extension.upper()}"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=rf"^{path} is not a readable image \(.+\); replace"):
        read_image(str(path), TRANSFORMS[0])


def test_large_odd_and_missing_files(tmp_path, monkeypatch):
    path = tmp_path / "png named.jpg"
    image = Image.new("P", (400, 300))
    image.save(path, "PNG", transparency=b"\0" * 256)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80_000)  # up to twice as many, a warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(str(path), TRANSFORMS[1]).shape == (3, 32, 32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 59_000)
    with pytest.raises(UnreadableFile, match=rf"{path} is not .*120000 pixels\) exceeds limit"):
        read_image(str(path), TRANSFORMS[1])
    monkeypatch.undo()
    Image.new("L", (1, 1001)).save(path, "PNG")
    with pytest.raises(UnreadableFile, match="1 x 1001 pixels, too narrow"):
        read_image(str(path), TRANSFORMS[1])
    path.unlink()
    with pytest.raises(UnreadableFile, match=f"{path} is gone"):
        read_image(str(path), TRANSFORMS[1])
    Image.new("L", (9, 9)).save(path, "PNG")
    with pytest.raises(UnreadableFile, match=r"\(MemoryError\)"):
        read_image(str(path), lambda picture: (_ for _ in ()).throw(MemoryError))
