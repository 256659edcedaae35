"""Predictions by tickets: captured, vmapped, and with batch norms folded, which changes none."""

import pytest
import torch
from torch import nn

from bench.speed.networks import TINY
from bench.speed.prediction import Prediction, fold, foldable
from bench.speed.variant import Case, Unavailable, Variant
from sparse_engine import sparsify
from sparse_engine.layers.batch_norm import estimate_batch_norm
from sparse_engine.layers.modules import SparseConv2d
from sparse_engine.models.build import build_model

CASE = Case(TINY, 0.8, "uniform", "16x16")


def test_a_captured_prediction_has_no_nodes(captures):
    Prediction(CASE, Variant("masked", captured=True), "cpu").capture()
    assert captures == [("masked captured", False)]


def test_only_dense_tickets_are_vmapped():
    with pytest.raises(Unavailable, match="only masked tickets"):
        Prediction(CASE, Variant("native", vmapped=True), "cpu")


@pytest.mark.parametrize(("name", "norms", "left"), [("wrn10-2", 7, 3), ("resnet8", 9, 0)])
@pytest.mark.parametrize("sparse", [False, True])
def test_predictions_stay_and_norms_go(name, norms, left, sparse):
    torch.manual_seed(0)
    model = build_model(name, classes=10, channels=3, height=8, width=8)
    pairs = foldable(model)
    if sparse:
        sparsify(model, 0.7, "uniform", (16, 16))
    x = torch.randn(4, 3, 8, 8)
    estimate_batch_norm(model, [torch.randn(16, 3, 8, 8)])
    right = model.eval()(x)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == norms
    fold(model, pairs)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == left
    assert any(isinstance(m, SparseConv2d) for m in model.modules()) == sparse
    torch.testing.assert_close(model(x), right, rtol=1e-4, atol=1e-5)


def test_a_norm_of_what_others_read_too_stays():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return y + self.norm(y)

    class Untraceable(Shared):
        def forward(self, x):
            return self.norm(self.conv(x)) if x.sum() > 0 else x

    assert foldable(Shared()) == []
    assert foldable(Untraceable()) == []
