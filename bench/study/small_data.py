"""A small part of a data set of images, as DIR/NAME.npz."""

from pathlib import Path

import numpy as np

from sparse_engine.errors import InputError

SPLITS = ("train", "test")


def cut(
    source: Path, target: Path, counts: tuple[int | None, int | None], pixels: int | None
) -> None:
    """Write the first images of each split, averaged to `pixels` a side.

    Args:
        source: .npz with train_images, train_labels, test_images, test_labels; images uint8
            [N, C, H, W].
        target: .npz, whole or not there at all.
        counts: of training and test images; None takes all.
        pixels: a divisor of H and W; None leaves them.

    Raises:
        InputError: no such file, or it has fewer images, or other sizes.
    """
    if not source.is_file():
        raise InputError(f"'{source}' is not there; it is what the small set is cut from")
    arrays = {}
    with np.load(source) as whole:
        for split, count in zip(SPLITS, counts):
            labels = whole[f"{split}_labels"]
            if count is not None and count > len(labels):
                raise InputError(f"'{source}' has {len(labels)} {split} images, not {count}")
            arrays[f"{split}_labels"] = labels[:count]
            images = whole[f"{split}_images"][:count]
            arrays[f"{split}_images"] = images if pixels is None else averaged(images, pixels)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part.npz")
    np.savez(part, **arrays)
    part.replace(target)


def averaged(images: np.ndarray, pixels: int) -> np.ndarray:
    """Return uint8 images [N, C, P, P] from [N, C, H, W], each pixel the mean of a square.

    Raises:
        InputError: P divides H and W into no squares.
    """
    count, channels, height, width = images.shape
    if height != width or height % pixels:
        raise InputError(f"images of {height}x{width} pixels cannot be averaged to {pixels}")
    side = height // pixels
    squares = images.reshape(count, channels, pixels, side, pixels, side).astype(np.float32)
    return squares.mean((3, 5)).round().astype(np.uint8)
