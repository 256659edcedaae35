"""Masks stay masks; what is captured has nodes of its own, none of the steps before: nodes.py."""

import pytest
import torch
from nodes import mark, marks

from bench.report.records import Records
from bench.speed.networks import TINY
from bench.speed.steps import Step
from bench.speed.variant import Case, Unavailable, Variant
from bench.training import Training

CASE = Case(TINY, 0.8, "uniform", "16x16")


def test_masks_keep_the_weights_at_zero():
    step = Step(CASE, Variant("mask-multiply"), "cpu")
    step.run()
    layout = step.layouts["blocks.1.conv1"]
    weight = step.model.blocks[1].conv1.weight
    grid = weight.view(layout.shape[0] // 16, 16, -1, 16, 3, 3)
    assert torch.equal(grid.abs().sum((1, 3)) > 0, layout.mask())


def test_no_step_is_grouped():
    with pytest.raises(Unavailable, match="neither grouped nor vmapped"):
        Step(CASE, Variant("auto", grouped=True), "cpu")


@pytest.mark.parametrize("name", ["dense captured", "masked rows captured", "native fuse captured"])
def test_nodes_of_a_captured_step_are_fresh(name, captures, monkeypatch, tmp_path):
    """After all that comes before: the check of layers and a plain step."""
    loss, variant = Step._loss, Variant.parse(name)

    def marked(self, x, y):
        value = loss(self, x, y)
        mark(self.model, "before")
        return value

    monkeypatch.setattr(Step, "_loss", marked)
    training = Training(Records(tmp_path / "a.csv", {"run": "now"}), "cpu")
    training.prepare(CASE.of(variant), variant)
    assert captures == [(name, True)]


def test_a_step_holds_its_nodes_from_forward_to_backward(captures):
    step = Step(CASE, Variant("masked", captured=True), "cpu")
    step.forward()
    mark(step.model, "before")
    assert marks(step.model) == {"before"}
    step.backward()
    assert marks(step.model) == set()
    step.forward()
    mark(step.model, "in a forward alone")
    step.capture()
    assert len(captures) == 1
