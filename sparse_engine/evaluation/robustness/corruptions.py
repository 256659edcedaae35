"""Fifteen families of image corruption at five severities (Hendrycks & Dietterich 2019).

Every family is a function of images float [N, C, H, W] in [0, 1], a generator and the numbers of
one severity. The numbers are those of CIFAR-10-C, made for 32x32 pixels: on larger images lengths
grow in proportion. Two families differ from the released sets: frost is drawn, where they blend in
photographs, and glass takes each pixel from a random neighbour, where they swap pairs in turn.
"""

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from sparse_engine.data.loader import seeded_generator
from sparse_engine.evaluation.robustness.image_filters import (
    clouds,
    correlate,
    disk,
    gaussian_blur,
    motion_kernels,
    zoom,
)

SEVERITIES = (1, 2, 3, 4, 5)
_SIZE = 32


class Family(NamedTuple):
    """A corruption and its numbers at severities 1 to 5."""

    function: Callable[..., Tensor]
    levels: tuple[tuple[float, ...], ...]


def corrupt(images: Tensor, family: str, severity: int, seed: int) -> Tensor:
    """Return corrupted images, rounded to the 256 levels of stored pixels.

    Args:
        images: float [N, C, H, W] in [0, 1], on the CPU.
        family: a key of FAMILIES.
        severity: 1 to 5.
        seed: equal seeds give equal images, and families share no random numbers.
    """
    stream = list(FAMILIES).index(family) * len(SEVERITIES) + severity
    generator = seeded_generator(seed, stream)
    function, levels = FAMILIES[family]
    corrupted = function(images, generator, *levels[severity - 1])
    return corrupted.clamp(0, 1).mul(255).round().div(255)


def gaussian_noise(images: Tensor, generator: torch.Generator, sigma: float) -> Tensor:
    """Add normal noise."""
    return images + sigma * torch.randn(images.shape, generator=generator)


def shot_noise(images: Tensor, generator: torch.Generator, photons: float) -> Tensor:
    """Count photons: Poisson noise, of `photons` for a white pixel."""
    return torch.poisson(images * photons, generator=generator) / photons


def impulse_noise(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Turn a share of the values into 0 or 1."""
    draws = torch.rand(images.shape, generator=generator)
    salted = torch.where(draws < share, 1.0, images)
    return torch.where(draws < share / 2, 0.0, salted)


def defocus_blur(images: Tensor, _: torch.Generator, radius: float, softness: float) -> Tensor:
    """Blur with a disk whose rim is soft."""
    reach = _reach(images)
    return gaussian_blur(correlate(images, disk(radius * reach)), softness * reach)


def glass_blur(
    images: Tensor, generator: torch.Generator, sigma: float, shift: float, rounds: float
) -> Tensor:
    """Blur, take each pixel from a random neighbour, and blur again."""
    sigma, shift = sigma * _reach(images), round(shift * _reach(images))
    count, channels, height, width = images.shape
    images = gaussian_blur(images, sigma)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    for _ in range(int(rounds)):
        draws = torch.randint(-shift, shift + 1, (2, count, height, width), generator=generator)
        down, across = (rows + draws[0]).clamp(0, height - 1), columns + draws[1]
        places = (down * width + across.clamp(0, width - 1)).flatten(1)[:, None]
        images = images.flatten(2).gather(2, places.expand(-1, channels, -1)).view_as(images)
    return gaussian_blur(images, sigma)


def motion_blur(images: Tensor, generator: torch.Generator, radius: float, sigma: float) -> Tensor:
    """Move the camera in a direction within 45 degrees of the rows."""
    angles = (torch.rand(len(images), generator=generator) - 0.5) * (math.pi / 2)
    reach = _reach(images)
    return correlate(images, motion_kernels(angles, radius * reach, sigma * reach))


def zoom_blur(images: Tensor, _: torch.Generator, highest: float) -> Tensor:
    """Average over enlargements in steps of 0.01 below `highest`."""
    factors = [1 + 0.01 * step for step in range(round((highest - 1) * 100))]
    return sum((zoom(images, factor) for factor in factors), images) / (len(factors) + 1)


def snow(
    images: Tensor,
    generator: torch.Generator,
    mean: float,
    spread: float,
    size: float,
    threshold: float,
    radius: float,
    sigma: float,
    kept: float,
) -> Tensor:
    """Pale the images, and let flakes fall."""
    count, _, height, width = images.shape
    reach = _reach(images)
    flakes = mean + spread * torch.randn(count, 1, height, width, generator=generator)
    flakes = zoom(flakes, size * reach)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    angles = (torch.rand(count, generator=generator) - 1.5) * (math.pi / 2)
    flakes = correlate(flakes, motion_kernels(angles, radius * reach, sigma * reach))
    pale = torch.maximum(images, images.mean(1, keepdim=True) * 1.5 + 0.5)
    return kept * images + (1 - kept) * pale + flakes + flakes.flip(2, 3)


def frost(images: Tensor, generator: torch.Generator, kept: float, amount: float) -> Tensor:
    """Blend with bright ridges of fractal noise, which resemble crystals."""
    ridges = 1 - (2 * clouds(images, 1.3, generator) - 1).abs()
    return kept * images + amount * ridges


def fog(images: Tensor, generator: torch.Generator, amount: float, decay: float) -> Tensor:
    """Add clouds, and keep the brightest value where it was."""
    brightest = images.amax((1, 2, 3), keepdim=True)
    foggy = images + amount * clouds(images, decay, generator)
    return foggy * brightest / (brightest + amount)


def brightness(images: Tensor, _: torch.Generator, amount: float) -> Tensor:
    """Raise the value of hue, saturation and value: the largest channel."""
    value = images.amax(1, keepdim=True)
    raised = (value + amount).clamp_max(1)
    return torch.where(value > 0, images * raised / value.clamp_min(1e-6), raised)


def contrast(images: Tensor, _: torch.Generator, factor: float) -> Tensor:
    """Draw every channel towards its mean."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def elastic_transform(
    images: Tensor, generator: torch.Generator, strength: float, smooth: float, skew: float
) -> Tensor:
    """Warp by a random affine map and a smooth random field; lengths are shares of the image."""
    count, _, height, width = images.shape
    spread = skew * torch.tensor([[2.0, 2.0, 1.0], [2.0, 2.0, 1.0]])
    theta = torch.eye(2, 3) + spread * _symmetric((count, 2, 3), generator)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    if strength:
        field = _symmetric((count, 2, height, width), generator)
        # The grid's coordinates run from -1 to 1, so a share of the image counts twice.
        field = 2 * strength * gaussian_blur(field, smooth * min(height, width))
        grid = grid + field.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def pixelate(images: Tensor, _: torch.Generator, share: float) -> Tensor:
    """Shrink to a share of the size, and enlarge the pixels."""
    height, width = images.shape[2:]
    fewer = [max(1, int(size * share)) for size in (height, width)]
    small = F.interpolate(images, fewer, mode="area")
    return F.interpolate(small, (height, width), mode="nearest-exact")


def jpeg_compression(images: Tensor, _: torch.Generator, quality: float) -> Tensor:
    """Compress and decompress; channels that are no colours are compressed one by one."""
    stored = images.mul(255).round().to(torch.uint8)
    if stored.shape[1] != 3:
        stored = stored.flatten(0, 1)[:, None]
    compressed = [_through_jpeg(picture, int(quality)) for picture in stored]
    return torch.stack(compressed).view(images.shape).float() / 255


def _through_jpeg(pixels: Tensor, quality: int) -> Tensor:
    """Return pixels uint8 [1, H, W] or [3, H, W] as they come back from a file."""
    file = io.BytesIO()
    to_pil_image(pixels).save(file, "JPEG", quality=quality)
    return pil_to_tensor(Image.open(file))


def _reach(images: Tensor) -> float:
    """Return by how much lengths grow; on images smaller than 32 pixels they stay."""
    return max(1.0, min(images.shape[2:]) / _SIZE)


def _symmetric(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(shape, generator=generator) - 1


def _one(*levels: float) -> tuple[tuple[float, ...], ...]:
    return tuple((level,) for level in levels)


FAMILIES = {
    "gaussian_noise": Family(gaussian_noise, _one(0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Family(shot_noise, _one(500, 250, 100, 75, 50)),
    "impulse_noise": Family(impulse_noise, _one(0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": Family(
        defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    ),
    "glass_blur": Family(
        glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
    ),
    "motion_blur": Family(motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": Family(zoom_blur, _one(1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": Family(
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Family(frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": Family(fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Family(brightness, _one(0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Family(contrast, _one(0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": Family(
        elastic_transform,
        ((0, 1, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": Family(pixelate, _one(0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Family(jpeg_compression, _one(80, 65, 58, 50, 40)),
}
