"""How good and how diverse predictions are. Pure functions on probabilities, in float64.

Predictions are float tensors [N, K] of class probabilities, rows summing to 1; labels are integer
tensors [N] of classes in [0, K). All functions raise ValueError for tensors of another rank or of
lengths that do not match, for empty ones, for labels outside [0, K), and for probabilities that
are negative or not finite.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = torch.finfo(torch.float64).tiny


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Return the fraction of the N samples whose most probable class is the label."""
    probabilities, labels = _checked(probabilities, labels)
    return _correct(probabilities, labels).mean().item()


def negative_log_likelihood(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean over samples of -log p(label), in nats.

    A probability of 0 counts as the smallest normal float64, so that the result is finite.
    """
    probabilities, labels = _checked(probabilities, labels)
    likelihoods = probabilities.gather(1, labels[:, None])
    return -_log(likelihoods).mean().item()


class CalibrationBins(NamedTuple):
    """Equal bins of confidence, each a float64 tensor [bins]; empty bins hold 0 in all three."""

    counts: Tensor
    accuracy: Tensor
    confidence: Tensor


def calibration_bins(probabilities: Tensor, labels: Tensor, bins: int = 15) -> CalibrationBins:
    """Return number, accuracy and mean confidence of the samples in every bin of confidence.

    The confidence of a sample is its largest probability. Bin b of `bins` equal ones holds the
    confidences in [b / bins, (b + 1) / bins), the last one 1 as well (Guo et al. 2017, section 2).

    Raises ValueError for fewer than one bin, too.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    probabilities, labels = _checked(probabilities, labels)
    confidences = probabilities.amax(1)
    inner_edges = torch.arange(1, bins, dtype=torch.float64) / bins
    indices = torch.bucketize(confidences, inner_edges, right=True)
    counts = torch.bincount(indices, minlength=bins).double()
    correct = _correct(probabilities, labels)
    sums = (torch.bincount(indices, weights=w, minlength=bins) for w in (correct, confidences))
    return CalibrationBins(counts, *(total / counts.clamp_min(1) for total in sums))


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error, in [0, 1] (Guo et al. 2017, equation 3).

    It is the mean over samples of |accuracy - mean confidence| of their bin; see calibration_bins.
    """
    counts, right, confidence = calibration_bins(probabilities, labels, bins)
    return (counts * (right - confidence).abs()).sum().item() / counts.sum().item()


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """Return the squared distance to the one-hot label, in [0, 2], mean over samples (Brier 1950).

    It sums over all K classes: for two classes it is twice the score of the positive class alone.
    """
    probabilities, labels = _checked(probabilities, labels)
    targets = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return (probabilities - targets).square().sum(1).mean().item()


def disagreement(p: Tensor, q: Tensor) -> float:
    """Return the fraction of samples that predictions p and q [N, K] put in different classes.

    Liu et al. 2022 (FreeTickets), section 4, "prediction disagreement".
    """
    p, q = _checked_pair(p, q)
    return (p.argmax(1) != q.argmax(1)).double().mean().item()


def kl_divergence(p: Tensor, q: Tensor) -> float:
    """Return the mean over samples of E_p[log p - log q], in nats, for predictions [N, K].

    Liu et al. 2022 (FreeTickets), section 4. A probability of 0 in q counts as the smallest normal
    float64, so that the result is finite.
    """
    p, q = _checked_pair(p, q)
    return (p * (_log(p) - _log(q))).sum(1).mean().item()


def pairwise_matrix(
    function: Callable[[Tensor, Tensor], float], members: Tensor
) -> list[list[float]]:
    """Return `function(p, q)` for every ordered pair of members [M, N, K], as M rows of M."""
    _check_members(members)
    return [[function(p, q) for q in members] for p in members]


def mean_of_pairs(matrix: Sequence[Sequence[float]]) -> float:
    """Return the mean of a pairwise_matrix over ordered pairs of different members.

    Raises ValueError for fewer than two members.
    """
    if len(matrix) < 2:
        raise ValueError(f"pairs need at least 2 members, not {len(matrix)}")
    values = [v for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j]
    return sum(values) / len(values)


def mean_probabilities(members: Tensor) -> Tensor:
    """Return the ensemble's prediction [N, K], float64: the mean of its members' [M, N, K]."""
    _check_members(members)
    return members.detach().cpu().double().mean(0)


def classification_metrics(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy, negative log-likelihood, calibration error and Brier score by short name."""
    return {
        "accuracy": accuracy(probabilities, labels),
        "nll": negative_log_likelihood(probabilities, labels),
        "ece": expected_calibration_error(probabilities, labels),
        "brier": brier_score(probabilities, labels),
    }


def _correct(probabilities: Tensor, labels: Tensor) -> Tensor:
    return (probabilities.argmax(1) == labels).double()


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(SMALLEST).log()


def _checked(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    probabilities = _checked_probabilities(probabilities)
    count, classes = probabilities.shape
    if labels.ndim != 1 or len(labels) != count:
        raise ValueError(f"labels must have shape [{count}], not {list(labels.shape)}")
    if labels.is_floating_point():
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    labels = labels.detach().cpu().long()
    if labels.min() < 0 or labels.max() >= classes:
        low, high = labels.min().item(), labels.max().item()
        raise ValueError(f"labels must lie in [0, {classes}), not [{low}, {high}]")
    return probabilities, labels


def _checked_pair(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    if p.shape != q.shape:
        raise ValueError(f"predictions differ in shape: {list(p.shape)} and {list(q.shape)}")
    return _checked_probabilities(p), _checked_probabilities(q)


def _checked_probabilities(probabilities: Tensor) -> Tensor:
    if probabilities.ndim != 2 or probabilities.numel() == 0:
        shape = list(probabilities.shape)
        raise ValueError(f"probabilities must be [N, K] and not empty, not of shape {shape}")
    # On the CPU, since not every device has float64 or adds in the same order each time.
    probabilities = probabilities.detach().cpu().double()
    if not probabilities.isfinite().all() or probabilities.min() < 0:
        raise ValueError("probabilities must be finite and not negative; were logits passed?")
    return probabilities


def _check_members(members: Tensor) -> None:
    if members.ndim != 3 or members.numel() == 0:
        shape = list(members.shape)
        raise ValueError(f"members must be [M, N, K] and not empty, not of shape {shape}")
