"""Foreign images, and what tickets say of them: confidence, entropy and energy."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_engine.data.arrays import DataSet, ImageFiles
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.data.load import load_dataset
from sparse_engine.data.loader import seeded_generator
from sparse_engine.errors import InputError
from sparse_engine.evaluation.robustness.pixel_model import Batches, pixel_batches

NOISE = "noise"
_GRAY = (0.299, 0.587, 0.114)


class ForeignSet(NamedTuple):
    """Foreign images by name; `matched` tells in words how they were fitted to the model."""

    name: str
    matched: str
    count: int
    stream: Batches


def foreign_set(
    name: str, own: DataSet, data_dir: str | None, batch_size: int, workers: int
) -> ForeignSet:
    """Return the test split of another data set, or Gaussian noise, in the size of `own`.

    Noise has pixels of mean 0.5 and deviation 0.25, cut to [0, 1], as many as the test split has.

    Raises:
        InputError: a data set that cannot be read, or has channels that cannot be matched.
    """
    if name == NOISE:
        count = len(own.test)
        words = "pixels of mean 0.5 and deviation 0.25, cut to [0, 1]"
        return ForeignSet(name, words, count, _noise(own.info, count, batch_size))
    data = load_dataset(name, data_dir)
    info, words = data.info, []
    if isinstance(data.test, ImageFiles):
        # Pictures of all sizes are cut to the wanted one as they are decoded.
        info = replace(info, height=own.info.height, width=own.info.width)
        words.append(f"pictures cut to {info.height}x{info.width}")
    elif (info.height, info.width) != (own.info.height, own.info.width):
        size = f"{own.info.height}x{own.info.width}"
        words.append(f"{info.height}x{info.width} resized to {size}")
    if info.channels != own.info.channels:
        match_channels(torch.empty(1, info.channels, 1, 1), own.info.channels)
        words.append(f"{info.channels} channels made {own.info.channels}")
    stream = _matched(pixel_batches(data.test, info, batch_size, workers), own.info)
    return ForeignSet(name, ", ".join(words) or "as they are", len(data.test), stream)


def detection(own: Tensor, foreign: Tensor) -> dict[str, Any]:
    """Return detection metrics by score, of the ensemble and of each member.

    Args:
        own: the logits [M, N, K] of the data set's own images.
        foreign: the logits [M, N', K] of foreign ones.

    Returns:
        confidence, entropy and energy, each a dictionary of detection_metrics, for the ensemble;
        `members`, a list of the same for each.
    """
    members = [_by_score(p[None], q[None]) for p, q in zip(own, foreign)]
    return {**_by_score(own, foreign), "members": members}


def scores(logits: Tensor) -> dict[str, Tensor]:
    """Return scores [N] that are high for foreign images, from logits [M, N, K] of M members.

    confidence is minus the highest mean probability (Hendrycks & Gimpel 2017), entropy that of the
    mean probabilities, energy minus the log-sum-exp of the logits, averaged over members, since an
    ensemble of probabilities has no logits of its own (Liu et al. 2020, equation 4, T = 1). Of a
    network that gives logarithms of probabilities the energy is always 0, and tells nothing.
    """
    logits = logits.double()
    mean = logits.softmax(2).mean(0)
    return {
        "confidence": -mean.amax(1),
        "entropy": -torch.xlogy(mean, mean).sum(1),
        "energy": -logits.logsumexp(2).mean(0),
    }


def _by_score(own: Tensor, foreign: Tensor) -> dict[str, dict[str, float]]:
    foreign_scores = scores(foreign)
    return {
        name: detection_metrics(values, foreign_scores[name])
        for name, values in scores(own).items()
    }


def _noise(info: DatasetInfo, count: int, batch_size: int) -> Batches:
    generator = seeded_generator(0, 0)
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        shape = (size, info.channels, info.height, info.width)
        pixels = 0.5 + 0.25 * torch.randn(shape, generator=generator)
        yield pixels.clamp(0, 1), torch.zeros(size, dtype=torch.int64)


def _matched(stream: Batches, own: DatasetInfo) -> Batches:
    size = (own.height, own.width)
    for pixels, labels in stream:
        pixels = match_channels(pixels, own.channels)
        if pixels.shape[2:] != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        yield pixels, labels


def match_channels(images: Tensor, channels: int) -> Tensor:
    """Return images [N, C', H, W] with `channels` channels: gray is repeated, colours weighed.

    A fourth channel, which is how opaque a pixel is, is dropped. Raises InputError for numbers of
    channels that have no such relation.
    """
    given = images.shape[1]
    if given == channels:
        return images
    if given == 1:
        return images.expand(-1, channels, -1, -1)
    if given in (3, 4) and channels == 3:
        return images[:, :3]
    if given in (3, 4) and channels == 1:
        weights = images.new_tensor(_GRAY)[:, None, None]
        return (images[:, :3] * weights).sum(1, keepdim=True)
    raise InputError(
        f"images of {given} channels cannot be shown to a model of {channels}; choose another --ood"
    )


def detection_metrics(own: Tensor, foreign: Tensor) -> dict[str, float]:
    """Return auroc, aupr and fpr95 of scores [N] of own images and [M] of foreign ones.

    auroc is the chance that a foreign image scores above an own one, ties counting half; aupr the
    average precision; fpr95 the share of own images that are taken for foreign where at least 95 %
    of the foreign ones are found.

    Raises ValueError for scores that are empty, not of rank 1, or not finite.
    """
    own, foreign = _checked(own), _checked(foreign)
    below = torch.searchsorted(own, foreign)
    not_above = torch.searchsorted(own, foreign, right=True)
    auroc = (below + not_above).double().mean() / (2 * len(own))
    # At the threshold of each foreign score: what is found, and what is taken for it.
    detected = len(foreign) - torch.searchsorted(foreign, foreign)
    mistaken = len(own) - below
    aupr = (detected / (detected + mistaken).double()).mean()
    threshold = foreign[len(foreign) * 5 // 100]
    fpr95 = (own >= threshold).double().mean()
    return {"auroc": auroc.item(), "aupr": aupr.item(), "fpr95": fpr95.item()}


def _checked(scores: Tensor) -> Tensor:
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"scores must be [N] and not empty, not of shape {list(scores.shape)}")
    if not scores.isfinite().all():
        raise ValueError("scores must be finite")
    return scores.detach().cpu().double().sort().values
