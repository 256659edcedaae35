"""Members by name, and costs that are only known if every run says them."""

import pytest

from sparse_engine.evaluation.tables import named_members, total_costs


def test_mean_and_ensemble_are_named_only_where_there_are_several():
    members = [{"accuracy": 0.5}, {"accuracy": 0.7}]
    found = named_members({"accuracy": 0.8, "members": members})
    assert list(found) == ["member 1", "member 2", "mean of members", "ensemble"]
    assert found["mean of members"]["accuracy"] == pytest.approx(0.6)
    assert list(named_members({"accuracy": 0.5, "members": members[:1]})) == ["member 1"]


def test_costs_that_one_run_does_not_say_are_unknown():
    one = {"train_flops": 3.0, "train_seconds": 2.0, "peak_memory_bytes": 5}
    two = {"train_flops": 4.0, "train_seconds": None, "peak_memory_bytes": 7}
    found = total_costs([one, two])
    assert (found["train_flops"], found["peak_memory_bytes"]) == (7.0, 7)
    assert found["train_seconds"] is None
    assert set(total_costs([one, None]).values()) == {None}


def test_runs_with_different_references_are_set_against_one():
    """A ratio of .5 to 100 FLOPs, and one of .25 to 400, are 1.5 times 100."""
    one, two = ({"train_flops": f, "train_flops_ratio": r} for f, r in ((50, 0.5), (100, 0.25)))
    costs = total_costs([one, two])
    assert (costs["train_flops"], costs["train_flops_ratio"]) == (150, 1.5)
    assert "different dense runs, of 100, 400 FLOPs" in costs["note"]
    costs = total_costs([one, one])
    assert (costs["train_flops_ratio"], costs["note"]) == (1.0, None)
