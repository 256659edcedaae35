"""How good and how diverse predictions are. Pure functions on probabilities, in float64.

Predictions are float tensors [N, K] of class probabilities, rows summing to 1, or with `log=True`
of their logarithms, which stay exact where a probability is too small for its data type; labels
are integer tensors [N] of classes in [0, K). All functions raise ValueError for tensors of another
rank or of lengths that do not match, for empty ones, for labels outside [0, K), and for
probabilities that are negative, not finite, or do not sum to 1.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = torch.finfo(torch.float64).tiny
# How far a row's sum may be from 1: rounding to bfloat16 moves it by at most 1 / 512.
_SUM_TOLERANCE = 5e-3


def accuracy(probabilities: Tensor, labels: Tensor, *, log: bool = False) -> float:
    """Return the fraction of the N samples whose most probable class is the label."""
    probabilities, labels = _checked(probabilities, labels, log)
    return _correct(probabilities, labels).mean().item()


def negative_log_likelihood(probabilities: Tensor, labels: Tensor, *, log: bool = False) -> float:
    """Return the mean over samples of -log p(label), in nats.

    A probability of 0 counts as the smallest normal float64, so that the result is finite: a
    float32 softmax gives 0 where logits are 104 apart. Logarithms (`log`) are exact there.
    """
    logs = _logarithms(probabilities, log)
    labels = _checked_labels(labels, logs)
    return -logs.gather(1, labels[:, None]).mean().item()


class CalibrationBins(NamedTuple):
    """Equal bins of confidence, each a float64 tensor [bins]; empty bins hold 0 in all three."""

    counts: Tensor
    accuracy: Tensor
    confidence: Tensor


def calibration_bins(
    probabilities: Tensor, labels: Tensor, bins: int = 15, *, log: bool = False
) -> CalibrationBins:
    """Return number, accuracy and mean confidence of the samples in every bin of confidence.

    The confidence of a sample is its largest probability. Bin b of `bins` equal ones holds the
    confidences in [b / bins, (b + 1) / bins), the last one 1 as well (Guo et al. 2017, section 2).

    Raises ValueError for fewer than one bin, too.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    probabilities, labels = _checked(probabilities, labels, log)
    confidences = probabilities.amax(1)
    inner_edges = torch.arange(1, bins, dtype=torch.float64) / bins
    indices = torch.bucketize(confidences, inner_edges, right=True)
    counts = torch.bincount(indices, minlength=bins).double()
    correct = _correct(probabilities, labels)
    sums = (torch.bincount(indices, weights=w, minlength=bins) for w in (correct, confidences))
    return CalibrationBins(counts, *(total / counts.clamp_min(1) for total in sums))


def expected_calibration_error(
    probabilities: Tensor, labels: Tensor, bins: int = 15, *, log: bool = False
) -> float:
    """Return the expected calibration error, in [0, 1] (Guo et al. 2017, equation 3).

    It is the mean over samples of |accuracy - mean confidence| of their bin; see calibration_bins.
    """
    counts, right, confidence = calibration_bins(probabilities, labels, bins, log=log)
    return (counts * (right - confidence).abs()).sum().item() / counts.sum().item()


def brier_score(probabilities: Tensor, labels: Tensor, *, log: bool = False) -> float:
    """Return the squared distance to the one-hot label, in [0, 2], mean over samples (Brier 1950).

    It sums over all K classes: for two classes it is twice the score of the positive class alone.
    """
    probabilities, labels = _checked(probabilities, labels, log)
    targets = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return (probabilities - targets).square().sum(1).mean().item()


def disagreement(p: Tensor, q: Tensor, *, log: bool = False) -> float:
    """Return the fraction of samples that predictions p and q [N, K] put in different classes.

    Liu et al. 2022 (FreeTickets), section 4, "prediction disagreement".
    """
    _check_pair(p, q)
    p, q = _probabilities(p, log), _probabilities(q, log)
    return (p.argmax(1) != q.argmax(1)).double().mean().item()


def kl_divergence(p: Tensor, q: Tensor, *, log: bool = False) -> float:
    """Return the mean over samples of E_p[log p - log q], in nats, for predictions [N, K].

    Liu et al. 2022 (FreeTickets), section 4. A probability of 0 in q counts as the smallest normal
    float64, so that the result is finite; logarithms (`log`) are exact there.
    """
    _check_pair(p, q)
    p, q = _logarithms(p, log), _logarithms(q, log)
    # Where p is 0 its term is 0, whatever its logarithm is.
    terms = p.exp() * torch.where(p == -math.inf, 0.0, p - q)
    return terms.sum(1).mean().item()


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
    return torch.stack([_probabilities(p) for p in members]).mean(0)


def mean_log_probabilities(members: Tensor) -> Tensor:
    """Return log of the mean of members' probabilities [N, K], float64, of logs [M, N, K]."""
    _check_members(members)
    logs = torch.stack([_logarithms(p, log=True) for p in members])
    return logs.logsumexp(0) - math.log(len(members))


def classification_metrics(
    probabilities: Tensor, labels: Tensor, *, log: bool = False
) -> dict[str, float]:
    """Return accuracy, negative log-likelihood, calibration error and Brier score by short name."""
    return {
        "accuracy": accuracy(probabilities, labels, log=log),
        "nll": negative_log_likelihood(probabilities, labels, log=log),
        "ece": expected_calibration_error(probabilities, labels, log=log),
        "brier": brier_score(probabilities, labels, log=log),
    }


def _correct(probabilities: Tensor, labels: Tensor) -> Tensor:
    return (probabilities.argmax(1) == labels).double()


def _checked(probabilities: Tensor, labels: Tensor, log: bool) -> tuple[Tensor, Tensor]:
    probabilities = _probabilities(probabilities, log)
    return probabilities, _checked_labels(labels, probabilities)


def _checked_labels(labels: Tensor, predictions: Tensor) -> Tensor:
    count, classes = predictions.shape
    if labels.ndim != 1 or len(labels) != count:
        raise ValueError(f"labels must have shape [{count}], not {list(labels.shape)}")
    if labels.is_floating_point():
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    labels = labels.detach().cpu().long()
    if labels.min() < 0 or labels.max() >= classes:
        low, high = labels.min().item(), labels.max().item()
        raise ValueError(f"labels must lie in [0, {classes}), not [{low}, {high}]")
    return labels


def _check_pair(p: Tensor, q: Tensor) -> None:
    if p.shape != q.shape:
        raise ValueError(f"predictions differ in shape: {list(p.shape)} and {list(q.shape)}")


def _probabilities(predictions: Tensor, log: bool = False) -> Tensor:
    """Return checked probabilities [N, K], float64 on the CPU."""
    if log:
        return _logarithms(predictions, log).exp()
    probabilities = _matrix(predictions, "probabilities")
    if not probabilities.isfinite().all() or probabilities.min() < 0:
        raise ValueError("probabilities must be finite and not negative; were logits passed?")
    _check_sums(probabilities.sum(1), "were they normalised?")
    return probabilities


def _logarithms(predictions: Tensor, log: bool) -> Tensor:
    """Return logarithms [N, K] of checked probabilities, float64 on the CPU."""
    if not log:
        return _probabilities(predictions).clamp_min(SMALLEST).log()
    logs = _matrix(predictions, "log-probabilities")
    if logs.isnan().any() or logs.max() == math.inf:
        raise ValueError("log-probabilities must not be nan or infinitely large")
    _check_sums(logs.exp().sum(1), "were logits passed?")
    return logs


def _matrix(predictions: Tensor, words: str) -> Tensor:
    if predictions.ndim != 2 or predictions.numel() == 0:
        shape = list(predictions.shape)
        raise ValueError(f"{words} must be [N, K] and not empty, not of shape {shape}")
    # On the CPU, since not every device has float64 or adds in the same order each time.
    return predictions.detach().cpu().double()


def _check_sums(sums: Tensor, question: str) -> None:
    wrong = (sums - 1).abs() > _SUM_TOLERANCE
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"the probabilities of a sample must sum to 1, those of row {row} sum to "
            f"{sums[row].item():.6g}; {question}"
        )


def _check_members(members: Tensor) -> None:
    if members.ndim != 3 or members.numel() == 0:
        shape = list(members.shape)
        raise ValueError(f"members must be [M, N, K] and not empty, not of shape {shape}")
