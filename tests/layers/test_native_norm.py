"""Norm, sum and ReLU in one call: as the modules one after another, natively or not."""

import copy

import pytest
import torch
from norms import lively
from torch import nn

from sparse_engine.layers import batch_norm
from sparse_engine.layers.batch_norm import norm_relu
from sparse_engine.layers.rows import RowsBatchNorm2d
from sparse_kernels.dispatch import backend
from sparse_kernels.memory_order import in_order

SHAPE = (6, 20, 5, 3)


@pytest.fixture(autouse=True)
def native(monkeypatch):
    """Take native kernels whatever `auto` would; count their calls."""
    monkeypatch.setenv(backend.VARIABLE, "native")
    calls, real = [], batch_norm.native_norm

    def counted(*arguments, **options):
        calls.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(batch_norm, "native_norm", counted)
    return calls


def images(order="channels_last", shape=SHAPE, dtype=torch.float32):
    return in_order(torch.randn(shape).to(dtype), order)


def apart(norm, x, residual, relu):
    y = norm(x)
    y = y if residual is None else y + residual
    return torch.relu(y) if relu else y


def assert_same(norm, x, residual=None, relu=True, steps=2):
    """Compare some steps, and what they leave in the norm, with the modules one after another."""
    plain = copy.deepcopy(norm)
    for _ in range(steps):
        found = norm_relu(norm, x, residual, relu)[0]
        torch.testing.assert_close(found, apart(plain, x, residual, relu))
    for (name, left), right in zip(norm.state_dict().items(), plain.state_dict().values()):
        torch.testing.assert_close(left, right, msg=name)


NORMS = {
    "usual": {},
    "mean of all batches": {"momentum": None},
    "not followed": {"momentum": 0.0},
    "no weight": {"affine": False},
    "no running statistics": {"track_running_stats": False},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
def test_settings_of_norms(options, training, native):
    norm = nn.BatchNorm2d(SHAPE[1], **options).train(training)
    if not {"affine", "track_running_stats"} & set(options):
        lively(norm)
    assert_same(norm, images() + 3, residual=images())
    assert len(native) == 2


def test_rows_and_no_relu(native):
    assert_same(RowsBatchNorm2d(SHAPE[1]), images("rows"), relu=False)
    assert len(native) == 2


def test_statistics_of_half_precision_are_float32(native):
    norm = nn.BatchNorm2d(SHAPE[1])
    x = images(dtype=torch.bfloat16)
    assert norm_relu(norm, x)[0].dtype == torch.bfloat16
    assert norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean, 0.1 * x.float().mean((0, 2, 3)))
    assert native


@pytest.mark.parametrize(
    "x",
    [images("contiguous"), images(dtype=torch.float64), images(shape=(0, 20, 5, 3))],
    ids=["NCHW", "float64", "empty"],
)
def test_what_is_not_native_runs_by_pytorch(x, native):
    assert_same(nn.BatchNorm2d(SHAPE[1]).to(x.dtype).train(len(x) > 0), x)
    assert not native


def test_a_residual_of_another_kind_is_added_as_usual(native):
    assert_same(nn.BatchNorm2d(SHAPE[1]), images(), residual=torch.randn(20, 1, 1))
    assert not native


def test_one_position_has_no_statistics():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_relu(nn.BatchNorm2d(20), images(shape=(1, 20, 1, 1)))


def test_auto_takes_native_norms_where_they_save_time(monkeypatch, native):
    few, many = images(), images(shape=(64, 64, 8, 8))
    for wanted, x, taken in (
        ("auto", few, "masked"),
        ("auto", many, "native"),
        ("masked", many, "masked"),
        ("native", few, "native"),
        ("triton", many, "triton"),
    ):
        monkeypatch.setenv(backend.VARIABLE, wanted)
        assert backend.norm_backend(x) == taken
    monkeypatch.setenv(backend.VARIABLE, "auto")
    with backend.without_native():
        assert backend.norm_backend(many) == "masked"
    monkeypatch.setattr(backend, "library", lambda: None)
    assert backend.norm_backend(many) == "masked"


def test_transforms_see_pytorchs_operators(native):
    norm, x = nn.BatchNorm2d(SHAPE[1]).eval(), images()
    found = torch.func.grad(lambda x: norm_relu(norm, x)[0].square().sum())(x)
    right = torch.func.grad(lambda x: torch.relu(norm(x)).square().sum())(x)
    torch.testing.assert_close(found, right)
    assert not native


@pytest.mark.parametrize("residual", [False, True])
def test_gradients_arrive_in_every_parameter(residual):
    norm, x, skip = lively(nn.BatchNorm2d(SHAPE[1])), images(), images()
    plain = copy.deepcopy(norm)
    found = []
    for module, run in ((norm, lambda *a: norm_relu(*a)[0]), (plain, apart)):
        leaves = [x.clone().requires_grad_(), skip.clone().requires_grad_()]
        y = run(module, leaves[0], leaves[1] if residual else None, True)
        y.square().sum().backward()
        found.append([*(leaf.grad for leaf in leaves), *(p.grad for p in module.parameters())])
    for left, right in zip(*found):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
