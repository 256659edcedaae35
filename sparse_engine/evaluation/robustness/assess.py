"""All that was asked for beyond the test split: corrupted, foreign and attacked images."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from sparse_engine.data.arrays import DataSet
from sparse_engine.evaluation.metrics import classification_metrics, mean_log_probabilities
from sparse_engine.evaluation.robustness.attacks import robust_accuracy
from sparse_engine.evaluation.robustness.corrupted import CorruptedSet, corrupted_sets
from sparse_engine.evaluation.robustness.options import Options
from sparse_engine.evaluation.robustness.out_of_distribution import detection, foreign_set
from sparse_engine.evaluation.robustness.pixel_model import (
    PixelModel,
    pixel_batches,
    predict_logits,
)
from sparse_engine.evaluation.tables import mean_metrics


def assess(
    members: Sequence[PixelModel],
    data: DataSet,
    data_dir: str | None,
    options: Options,
    batch_size: int,
    workers: int,
) -> dict[str, Any]:
    """Return `corruptions`, `ood` and `attacks`, each only if the options ask for it.

    Raises:
        InputError: before anything is computed, for files that are missing or of wrong shape.
    """
    severities = list(options.severities)
    source, sets = corrupted_sets(data, data_dir, severities, workers) if severities else ("", [])
    foreign = [foreign_set(name, data, data_dir, batch_size, workers) for name in options.foreign]
    result: dict[str, Any] = {}
    if sets:
        metrics = corruption_metrics(members, sets)
        result["corruptions"] = {"source": source, "severities": severities, **metrics}
    if foreign:
        own = pixel_batches(data.test, data.info, batch_size, workers)
        own_logits, _ = predict_logits(members, own)
        result["ood"] = {
            name: {
                "matched": matched,
                "images": count,
                **detection(own_logits, predict_logits(members, stream)[0]),
            }
            for name, matched, count, stream in tqdm(foreign, desc="foreign images", disable=None)
        }
    if options.attacks:
        result["attacks"] = _attack_all(members, data, options, batch_size, workers)
    return result


def corruption_metrics(
    members: Sequence[PixelModel], sets: Sequence[CorruptedSet]
) -> dict[str, Any]:
    """Return metrics of the ensemble, their means over sets, and those by family and severity.

    Returns:
        accuracy, nll, ece and brier of the ensemble, means over all sets; `members`, the same of
        each; `families`, those of the ensemble by family and severity (a text, as in JSON).
    """
    families: dict[str, dict[str, Any]] = {}
    all_metrics = []
    for family, severity, stream in tqdm(sets, desc="corruptions", disable=None):
        logits, labels = predict_logits(members, stream)
        logs = logits.log_softmax(2)
        everyone = [*logs, mean_log_probabilities(logs)]
        metrics = [classification_metrics(own, labels, log=True) for own in everyone]
        families.setdefault(family, {})[str(severity)] = metrics[-1]
        all_metrics.append(metrics)
    *each, ensemble = (mean_metrics(of_one) for of_one in zip(*all_metrics))
    return {**ensemble, "members": each, "families": families}


def _attack_all(
    members: Sequence[PixelModel], data: DataSet, options: Options, batch_size: int, workers: int
) -> dict[str, Any]:
    """Return robust_accuracy by attack; a part of the split is spread evenly over it."""
    count = min(options.attack_images or len(data.test), len(data.test))
    split = data.test.subset(torch.arange(count) * len(data.test) // count)
    results = {}
    for attack in options.attacks:
        stream = pixel_batches(split, data.info, batch_size, workers)
        stream = tqdm(stream, desc=attack, disable=None, total=-(-count // batch_size))
        results[attack] = {
            "epsilon": options.epsilon,
            **({"steps": options.attack_steps} if attack == "pgd" else {}),
            **robust_accuracy(members, stream, attack, options.epsilon, options.attack_steps),
        }
    return results
