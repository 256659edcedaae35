"""How well a score tells foreign images from those of the data set.

Scores are float tensors [N], higher for foreign images; foreign images are the positives in all
three numbers (Hendrycks et al. 2019, "Deep anomaly detection with outlier exposure").
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    found = len(foreign) - torch.searchsorted(foreign, foreign)
    mistaken = len(own) - below
    aupr = (found / (found + mistaken).double()).mean()
    threshold = foreign[len(foreign) * 5 // 100]
    fpr95 = (own >= threshold).double().mean()
    return {"auroc": auroc.item(), "aupr": aupr.item(), "fpr95": fpr95.item()}


def _checked(scores: Tensor) -> Tensor:
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"scores must be [N] and not empty, not of shape {list(scores.shape)}")
    if not scores.isfinite().all():
        raise ValueError("scores must be finite")
    return scores.detach().cpu().double().sort().values
