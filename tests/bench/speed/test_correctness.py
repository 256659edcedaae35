"""What is wrong is found: in a whole step, in a layer alone, in a fused call."""

import pytest
import torch

from bench.speed import correctness
from bench.speed.correctness import Reference, WrongResult, check_layers
from bench.speed.networks import TINY, Network
from bench.speed.steps import Step
from bench.speed.variant import DENSE, Case, Variant
from sparse_engine.layers import fused
from sparse_engine.layers.modules import SparseConv2d
from sparse_kernels.dispatch.backend import forced_backend
from sparse_kernels.operators import fused_convolution

CASE = Case(TINY, 0.8, "uniform", "16x16")


def test_a_layer_that_is_a_little_wrong_is_found(monkeypatch):
    step = Step(CASE, Variant("native"), "cpu")
    assert check_layers(step) < 1e-5
    layer, right = step.model.blocks[1].conv1, SparseConv2d.forward
    monkeypatch.setattr(
        SparseConv2d, "forward", lambda self, x: right(self, x) * (1.001 if self is layer else 1)
    )
    with pytest.raises(WrongResult, match=r"conv1 .* is off by 1.0e-03, .* \(3 of "):
        check_layers(step)
    assert check_layers(Step(CASE.dense(), DENSE, "cpu")) is None


def test_a_fused_step_is_checked_call_by_call(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    network = Network("wrn10-1", (3, 4, 4), 2, 2)
    variant = Variant.parse("triton rows fuse")
    step = Step(Case(network, 0.5, "uniform", "16x16"), variant, "cpu")
    block, errors = step.model.blocks[0], {}

    def forward(step):
        """Run one convolution of the network, for the interpreter is slow."""
        with forced_backend(step.variant.backend):
            source = fused.normalised(block.norm2, torch.randn(2, 16, 4, 4))
            fused.convolve(block.conv2, source, torch.randn(2, 16, 4, 4))

    real, refuse = fused_convolution.strip_shares, correctness.refuse
    monkeypatch.setattr(correctness, "_forward", forward)
    monkeypatch.setattr(correctness, "refuse", lambda e, m: errors.update(e) or refuse(e, m))
    assert check_layers(step) < 1e-5
    names = ("output", "mean", "x gradient", "residual gradient", "norm bias gradient")
    assert {f"blocks.0.conv2 fused {name}" for name in names} <= set(errors)
    monkeypatch.setattr(
        fused_convolution, "strip_shares", lambda *arguments: real(*arguments) * 1.001
    )
    with pytest.raises(WrongResult, match=r"fused values gradient is off by 1.0e-03"):
        check_layers(step)


def test_a_step_without_gradients_is_far_off(monkeypatch):
    step = Step(CASE, Variant("masked"), "cpu")
    assert Reference.of(CASE, "cpu").check(step) < 1e-4
    monkeypatch.setattr(step, "optimize", lambda: step.optimizer.zero_grad(set_to_none=False))
    with pytest.raises(WrongResult, match=r"is off by 1.0e\+00"):
        Reference.of(CASE, "cpu").check(step)
