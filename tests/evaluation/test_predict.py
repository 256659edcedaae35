"""Metrics of ensembles of some members: of all subsets, or of as many as are drawn."""

import itertools

import pytest
import torch

from sparse_engine.evaluation.metrics import accuracy, mean_log_probabilities
from sparse_engine.evaluation.predict import MOST, ensemble_metrics, subset_metrics, subsets


def test_all_subsets_of_few_members():
    generator = torch.Generator().manual_seed(0)
    members = [torch.randn(50, 4, generator=generator).log_softmax(1) for _ in range(3)]
    labels = torch.randint(4, (50,), generator=generator)
    first, second, third = subset_metrics(members, labels)
    pairs = [torch.stack(pair) for pair in itertools.combinations(members, 2)]
    found = [accuracy(mean_log_probabilities(pair), labels, log=True) for pair in pairs]
    assert (second["members"], second["subsets"]) == (2, 3)
    wanted = {"mean": sum(found) / 3, "low": min(found), "high": max(found)}
    assert second["accuracy"] == pytest.approx(wanted)
    whole = ensemble_metrics(members, labels)
    assert third["nll"] == pytest.approx(dict.fromkeys(wanted, whole["nll"]))
    assert first["accuracy"]["high"] == max(whole["member_accuracy"])


def test_subsets_are_drawn_where_there_are_many():
    drawn = subsets(12, 6)
    assert len(set(drawn)) == MOST
    assert all(len({*places}) == 6 and set(places) <= {*range(12)} for places in drawn)
    assert drawn == subsets(12, 6)
    assert subsets(12, 12) == [tuple(range(12))]
