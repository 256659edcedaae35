"""Layers that stay dense because somebody says so."""

import copy

import pytest
from torch import nn

from sparse_engine import report, sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.surgery import budget_layers


def network():
    parts = {"stem": nn.Linear(16, 32), "body": nn.Linear(32, 32), "head": nn.Linear(32, 16)}
    return nn.Sequential(*[]).append(nn.ModuleDict(parts))


@pytest.mark.parametrize(
    ("skip", "skipped"),
    [
        ("0.head", {"0.head"}),
        ("*head", {"0.head"}),
        ("*stem, *head", {"0.stem", "0.head"}),
        (["*stem", "0.head"], {"0.stem", "0.head"}),
        ((), set()),
        ("", set()),
    ],
)
def test_skip_takes_names_and_patterns_in_a_string_or_a_list(skip, skipped):
    model = network()
    sparsify(model, 0.5, "uniform", (8, 8), skip=skip)
    for own in (model, copy.deepcopy(model)):  # layers remember it
        assert {row.name for row in report(own).rows if row.note == "skip"} == skipped
        assert {name for name, _ in budget_layers(own)} == {"0.stem", "0.body", "0.head"} - skipped


def test_the_last_call_decides():
    model = network()
    sparsify(model, 0.5, "uniform", (8, 8), skip="*stem")
    kept = copy.deepcopy(model)
    sparsify(kept, 0.4, {"0.stem": 0.5}, (8, 8), skip="")
    assert [row.note for row in report(kept).rows] == ["", "", ""]


def test_a_pattern_that_matches_nothing_is_refused():
    model = network()
    with pytest.raises(InputError, match=r"skip '0.haed' matches no layer; did you mean '0.head'"):
        sparsify(model, 0.5, skip="*stem,0.haed")
    assert report(model).density == 1
