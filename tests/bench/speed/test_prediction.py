"""Predictions by tickets: which can be vmapped, and that a captured one has no gradients."""

import pytest

from bench.speed.networks import TINY
from bench.speed.prediction import Prediction
from bench.speed.variant import Case, Unavailable, Variant

CASE = Case(TINY, 0.8, "uniform", "16x16")


def test_a_captured_prediction_has_no_nodes(captures):
    Prediction(CASE, Variant("masked", captured=True), "cpu").capture()
    assert captures == [("masked captured", False)]


def test_only_dense_tickets_are_vmapped():
    with pytest.raises(Unavailable, match="only masked tickets"):
        Prediction(CASE, Variant("gemm", vmapped=True), "cpu")
