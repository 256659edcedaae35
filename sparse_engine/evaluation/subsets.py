"""How good ensembles of some of the members are, whichever are taken."""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_engine.evaluation.metrics import (
    accuracy,
    mean_log_probabilities,
    negative_log_likelihood,
)

MOST = 20  # subsets of one size that are looked at
_METRICS: dict[str, Callable[..., float]] = {"accuracy": accuracy, "nll": negative_log_likelihood}


def subset_metrics(members: Sequence[Tensor], labels: Tensor) -> list[dict[str, Any]]:
    """Return accuracy and NLL of ensembles of 1, 2, ..., M of the members.

    Args:
        members: the log-probabilities [N, K] of each.
        labels: the classes [N].

    Returns:
        For each size: members, subsets (how many were looked at: all, or MOST drawn ones, the same
        every time), and `mean`, `low` and `high` (the smallest and largest) of accuracy and nll.
    """
    stacked, sizes = torch.stack(list(members)), []
    for size in range(1, len(stacked) + 1):
        chosen = subsets(len(stacked), size)
        means = [mean_log_probabilities(stacked[list(places)]) for places in chosen]
        row: dict[str, Any] = {"members": size, "subsets": len(chosen)}
        for name, metric in _METRICS.items():
            found = [metric(mean, labels, log=True) for mean in means]
            row[name] = {"mean": math.fsum(found) / len(found), "low": min(found)}
            row[name]["high"] = max(found)
        sizes.append(row)
    return sizes


def subsets(count: int, size: int) -> list[tuple[int, ...]]:
    """Return all subsets of a size of the numbers below `count`, or MOST of them, drawn."""
    if math.comb(count, size) <= MOST:
        return list(itertools.combinations(range(count), size))
    draw, drawn = random.Random(0), dict[tuple[int, ...], None]()
    while len(drawn) < MOST:
        drawn[tuple(sorted(draw.sample(range(count), size)))] = None
    return list(drawn)
