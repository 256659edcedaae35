"""Filters of batches of images, of which the corruptions are made; plain PyTorch on any device.

Images are float tensors [N, C, H, W]; what lies beyond an edge is the edge itself.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def correlate(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter every channel with its image's kernel.

    Args:
        images: the batch [N, C, H, W].
        kernels: one for each image [N, k, l], or [1, k, l] for all; k and l are odd.
    """
    rows, columns = kernels.shape[1:]
    padded = F.pad(images, (columns // 2,) * 2 + (rows // 2,) * 2, mode="replicate")
    if len(kernels) == 1:
        return F.conv2d(padded.flatten(0, 1)[:, None], kernels[:, None]).view_as(images)
    weights = kernels.repeat_interleave(images.shape[1], 0)[:, None]
    return F.conv2d(padded.flatten(0, 1)[None], weights, groups=len(weights)).view_as(images)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian of `sigma` pixels, cut off at three sigma."""
    reach = max(1, math.ceil(3 * sigma))
    line = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    line = line / line.sum()
    return correlate(correlate(images, line[None, None]), line[None, :, None])


def disk(radius: float) -> Tensor:
    """Return the kernel [1, k, k] of a lens out of focus: all pixels within `radius`."""
    places = torch.arange(-math.ceil(radius), math.ceil(radius) + 1.0)
    inside = (places[:, None] ** 2 + places**2 <= radius**2).float()
    return inside[None] / inside.sum()


def motion_kernels(angles: Tensor, radius: float, sigma: float) -> Tensor:
    """Return kernels [N, k, k] of motion that fades out: a half Gaussian of `sigma` pixels.

    Args:
        angles: the directions [N] in radians, 0 along the rows.
        radius: the length of the motion in pixels.
        sigma: the deviation of the Gaussian in pixels, so how soon the motion fades.
    """
    steps = torch.arange(0, math.floor(radius) + 1.0)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    places = torch.arange(-math.ceil(radius), math.ceil(radius) + 1.0)
    # A place between pixels is shared among its neighbours, as in bilinear interpolation.
    across, down = (
        (1 - (places[:, None] - (steps * turn(angles)[:, None])[:, None]).abs()).clamp_min(0)
        for turn in (torch.cos, torch.sin)
    )
    return torch.einsum("nys,nxs,s->nyx", down, across, weights / weights.sum())


def zoom(images: Tensor, factor: float) -> Tensor:
    """Return the centre of the images, enlarged `factor` times to the same size."""
    theta = torch.tensor([[1 / factor, 0.0, 0.0], [0.0, 1 / factor, 0.0]])
    grid = F.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def clouds(images: Tensor, decay: float, generator: torch.Generator) -> Tensor:
    """Return fractal noise [N, 1, H, W] that spans [0, 1] in every image.

    Octaves of random values on finer and finer grids are added, each `decay` times weaker.
    """
    count, _, height, width = images.shape
    total, amplitude, cells = torch.zeros(count, 1, height, width), 1.0, 2
    while cells < 2 * max(height, width):
        values = torch.rand(count, 1, cells, cells, generator=generator)
        grid = F.interpolate(values, (height, width), mode="bilinear", align_corners=True)
        total += amplitude * grid
        amplitude, cells = amplitude / decay, 2 * cells
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low).clamp_min(1e-6)
