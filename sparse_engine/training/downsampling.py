"""Smaller images in some mini-batches: less work in those, the same network.

Source: Poulos, Nouri, Moshovos, *Training CNNs faster with Dynamic Input and Kernel Downsampling*,
2019, for the images. Their kernels are pooled with the images. Here they are not: the pooled kernel
of blocks that are stored tap by tap, or row by row, has the union of its taps' blocks, which is a
layout of its own, several times as dense, to be made in each such step.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from sparse_engine.errors import InputError
from sparse_engine.models.workload import training_forward_flops

FACTOR = 2


def is_downsampled(rate: float, seed: int, step: int) -> bool:
    """Return whether a step's images are pooled: a function of seed and step, true for `rate`."""
    return random.Random(f"downsample {seed} {step}").random() < rate


@contextmanager
def some_smaller(
    model: nn.Module, images: Tensor, rate: float, seed: int, step: int
) -> Iterator[Tensor]:
    """Give the images that a step trains on: pooled by 2x2 pixels where is_downsampled() says so.

    In such a step batch-norm leaves its running statistics alone: networks are used on whole
    images, whose statistics are others.

    Args:
        model: in training mode.
        images: [N, C, H, W]; an odd last row or column is a mean of its own.
        rate, seed, step: of is_downsampled.
    """
    if not is_downsampled(rate, seed, step):
        yield images
        return
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield F.avg_pool2d(images, FACTOR, ceil_mode=True)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


def training_flops(
    model: nn.Module, image: Sequence[int], rate: float, batch: int = 1
) -> dict[str, float]:
    """Return dense forward FLOPs per training image of each layer, on average over the steps.

    Args:
        model: any nn.Module.
        image: (C, H, W).
        rate: share of steps with smaller images.
        batch: images a step.

    Raises:
        InputError: the model takes images of one size only.
    """
    full = training_forward_flops(model, image, batch)
    if not rate:
        return full
    channels, height, width = image
    smaller = (channels, -(-height // FACTOR), -(-width // FACTOR))
    try:
        pooled = training_forward_flops(model, smaller, batch)
    except (RuntimeError, ValueError, AssertionError):
        raise InputError(
            f"the model cannot take images of {smaller[1]}x{smaller[2]}, which --downsample-rate "
            "makes: leave it out, or use a model with global pooling"
        ) from None
    return {name: (1 - rate) * full[name] + rate * pooled[name] for name in full}
