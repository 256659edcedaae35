"""Predictions of a model on a data split, and the metrics of members and of their ensemble."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.config.config import Dtype
from sparse_engine.data.splits import Split, batches
from sparse_engine.device import autocast
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.evaluation.metrics import (
    calibration_bins,
    classification_metrics,
    disagreement,
    kl_divergence,
    mean_log_probabilities,
    mean_of_pairs,
    pairwise_matrix,
)
from sparse_engine.runs.tickets import Ticket


@torch.no_grad()
def predict(
    model: nn.Module, split_batches: Iterator, dtype: Dtype = "fp32"
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities [N, K] and labels [N], on the CPU; the model's mode is kept.

    Raises:
        InputError: no batches.
    """
    training = model.training
    model.eval()
    logs, labels = [], []
    for x, y in split_batches:
        x = x.to(memory_format=torch.channels_last)
        with autocast(x.device, dtype):
            logits = model(x)
        logs.append(logits.float().log_softmax(1).cpu())
        labels.append(y.cpu())
    model.train(training)
    if not logs:
        raise InputError("predictions need at least one batch of images; found none")
    return torch.cat(logs), torch.cat(labels)


def member_log_probabilities(
    tickets: Iterable[Ticket], split: Split, device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """Return log-probabilities [N, K] of each member of each ticket, and the labels [N].

    Raises:
        InputError: a ticket cannot be read; RunFailure: predictions that are not finite.
    """
    members, labels = [], torch.empty(0)
    for ticket in tickets:
        config = ticket.config
        for member in ticket.members(device):
            images = batches(split, ticket.info, 2 * config.batch_size, device, config.workers)
            logs, labels = predict(member, images, config.dtype)
            if not bool(logs.isfinite().all()):
                raise RunFailure(
                    f"predictions of ticket '{ticket.path}' are not finite: restore its file, or "
                    "train it again"
                )
            members.append(logs)
    return members, labels


def ensemble_metrics(members: Sequence[Tensor], labels: Tensor) -> dict[str, Any]:
    """Return metrics of the ensemble and of each member.

    Args:
        members: the log-probabilities [N, K] of each.
        labels: the classes [N].

    Returns:
        accuracy, nll, ece and brier of the mean probabilities; `members`, the same of each;
        member_accuracy, the accuracy of each; and, with several members, their mean pairwise
        disagreement and kl (FreeTickets, section 4), the matrices [M][M] of both, and `growing`,
        the metrics of the ensembles of the first 1, 2, ..., M members.
    """
    stacked = torch.stack(list(members))

    def of_first(count: int) -> dict[str, Any]:
        return classification_metrics(mean_log_probabilities(stacked[:count]), labels, log=True)

    each = [classification_metrics(logs, labels, log=True) for logs in stacked]
    metrics = of_first(len(each))
    metrics |= {"member_accuracy": [m["accuracy"] for m in each], "members": each}
    if len(each) > 1:
        for name, function in (("disagreement", disagreement), ("kl", kl_divergence)):
            matrix = pairwise_matrix(partial(function, log=True), stacked)
            metrics[name], metrics[f"{name}_matrix"] = mean_of_pairs(matrix), matrix
        metrics["growing"] = [of_first(count) for count in range(1, len(each) + 1)]
    return metrics


def calibration(members: Sequence[Tensor], labels: Tensor) -> dict[str, list[float]]:
    """Return counts, accuracy and confidence of the bins of the ensemble's reliability diagram.

    Arguments are those of ensemble_metrics.
    """
    bins = calibration_bins(mean_log_probabilities(torch.stack(list(members))), labels, log=True)
    return {name: values.tolist() for name, values in bins._asdict().items()}
