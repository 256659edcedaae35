"""What is captured has nodes of its own: none is left of the steps before, see nodes.py."""

import pytest
import torch
from nodes import mark, marks

from bench.speed.correctness import Reference
from bench.speed.measure import prepare
from bench.speed.networks import TINY
from bench.speed.prediction import Prediction
from bench.speed.steps import Step
from bench.speed.variant import Case, Contender

CASE = Case(TINY, 0.8, "uniform", "16x16")


@pytest.fixture
def captures(monkeypatch):
    """Let a capture be the function itself; return what was captured."""
    found = []

    def capture(self, function, *inputs):
        assert marks(self.model) == set()
        found.append((self.name, torch.is_grad_enabled()))
        self.replay = function

    monkeypatch.setattr(Contender, "capture", capture)
    return found


@pytest.mark.parametrize("name", ["dense captured", "masked rows captured", "gemm fuse captured"])
def test_nodes_of_a_captured_step_are_fresh(name, captures, monkeypatch):
    """After all that comes before: the check of layers and a plain step."""
    loss = Step._loss

    def marked(self, x, y):
        found = loss(self, x, y)
        mark(self.model, "before")
        return found

    monkeypatch.setattr(Step, "_loss", marked)
    own = CASE.dense() if name.startswith("dense") else CASE
    prepare(own, name, "cpu", Reference.of(own, "cpu"))
    assert captures == [(name, True)]


def test_a_step_holds_its_nodes_from_forward_to_backward(captures):
    step = Step(CASE, "masked captured", "cpu")
    step.forward()
    mark(step.model, "before")
    assert marks(step.model) == {"before"}
    step.backward()
    assert marks(step.model) == set()
    step.forward()
    mark(step.model, "in a forward alone")
    step.capture_step()
    assert len(captures) == 1


def test_a_captured_prediction_has_no_nodes(captures):
    Prediction(CASE, "masked captured", "cpu").capture_prediction()
    assert captures == [("masked captured", False)]
