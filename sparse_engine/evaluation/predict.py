"""Predictions of a model on a data split, and the table that sets members beside their ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.data.arrays import DataSet, ImageArrays, ImageFiles
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.data.folder import FolderLoader, folder_evaluation_batches
from sparse_engine.data.loader import ArrayLoader, evaluation_batches, split_validation
from sparse_engine.device import autocast
from sparse_engine.evaluation.metrics import (
    calibration_bins,
    classification_metrics,
    disagreement,
    kl_divergence,
    mean_of_pairs,
    mean_probabilities,
    pairwise_matrix,
)
from sparse_engine.evaluation.tables import named_members
from sparse_engine.layers.report import format_table

Split = ImageArrays | ImageFiles


def choosing_split(
    data: DataSet, select: str, validation: float, seed: int
) -> tuple[Split, str, Split]:
    """Return what a run trains on, and name and images of the split it is evaluated on meanwhile.

    With --select validation these are training images held out, and may choose; else the test
    split, which never does.

    Args:
        data: of the run.
        select: "validation" or "last", as --select.
        validation: share of the training images that is held out.
        seed: of the choice of these.
    """
    if select == "validation":
        train, held_out = split_validation(data.train, validation, seed)
        return train, "validation", held_out
    return data.train, "test", data.test


def training_loader(
    split: Split, info: DatasetInfo, batch_size: int, device: torch.device, seed: int, workers: int
) -> ArrayLoader | FolderLoader:
    """Return the loader of a split's kind; see ArrayLoader."""
    if isinstance(split, ImageArrays):
        return ArrayLoader(split, info, batch_size, device, seed=seed)
    return FolderLoader(split, info, batch_size, device, seed=seed, workers=workers)


def batches(
    split: Split, info: DatasetInfo, batch_size: int, device: torch.device, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a split's batches in order, without augmentation."""
    if isinstance(split, ImageArrays):
        return evaluation_batches(split, info, batch_size, device)
    return folder_evaluation_batches(split, info, batch_size, device, workers=workers)


@torch.no_grad()
def predict(
    model: nn.Module, split_batches: Iterator, dtype: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """Return softmax probabilities [N, K] and labels [N], on the CPU; the model's mode is kept."""
    training = model.training
    model.eval()
    probabilities, labels = [], []
    for x, y in split_batches:
        x = x.contiguous(memory_format=torch.channels_last)
        with autocast(x.device, dtype):
            logits = model(x)
        probabilities.append(logits.float().softmax(1).cpu())
        labels.append(y.cpu())
    model.train(training)
    return torch.cat(probabilities), torch.cat(labels)


def ensemble_metrics(members: Sequence[Tensor], labels: Tensor) -> dict[str, Any]:
    """Return metrics of the ensemble and of each member.

    Args:
        members: probabilities [N, K] of each.
        labels: [N].

    Returns:
        accuracy, nll, ece and brier of the mean probabilities; `members`, the same of each;
        member_accuracy, the accuracy of each; and, with several members, their mean pairwise
        disagreement and kl (FreeTickets, section 4), the matrices [M][M] of both, and `growing`,
        the metrics of the ensembles of the first 1, 2, ..., M members.
    """
    stacked = torch.stack(list(members))
    each = [classification_metrics(p, labels) for p in stacked]
    found: dict[str, Any] = classification_metrics(mean_probabilities(stacked), labels)
    found["member_accuracy"] = [m["accuracy"] for m in each]
    found["members"] = each
    if len(each) > 1:
        for name, function in (("disagreement", disagreement), ("kl", kl_divergence)):
            matrix = pairwise_matrix(function, stacked)
            found[name], found[f"{name}_matrix"] = mean_of_pairs(matrix), matrix
        found["growing"] = [
            classification_metrics(mean_probabilities(stacked[:count]), labels)
            for count in range(1, len(each) + 1)
        ]
    return found


def metrics_table(found: dict[str, Any]) -> str:
    """Return members, their mean and the ensemble as a table."""
    columns = ("accuracy", "nll", "ece", "brier")
    rows = [("", "", *columns)]
    rows += [
        (name, "", *(f"{m[c]:.4f}" for c in columns)) for name, m in named_members(found).items()
    ]
    return format_table(rows)


def calibration(members: Sequence[Tensor], labels: Tensor) -> dict[str, list[float]]:
    """Return counts, accuracy and confidence of the bins of the ensemble's reliability diagram."""
    bins = calibration_bins(mean_probabilities(torch.stack(list(members))), labels)
    return {name: values.tolist() for name, values in bins._asdict().items()}
