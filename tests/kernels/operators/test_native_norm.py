"""Batch norm, residual and ReLU by the native kernels, against PyTorch's operators in float64."""

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import FLOOR, guarded, relative_error

from sparse_kernels.cpu import norms
from sparse_kernels.memory_order import in_order, order_of
from sparse_kernels.operators.native_norm import native_norm, norm_native, norm_native_backward

pytestmark = pytest.mark.usefixtures("poisoned")

# A vector has 4, 8 or 16 lanes, a tile 64 rows of whole vectors.
SHAPES = {
    "no whole vector": (3, 5, 2, 3),
    "one channel, several tiles": (5, 1, 31, 29),
    "several tiles, a part of a vector": (20, 70, 4, 5),
    "a part of a row after a tile": (128, 8, 4, 4),
    "one pixel": (130, 16, 1, 1),
    "whole vectors": (7, 64, 5, 7),
}
OPTIONS = {
    "norm": {"relu": False},
    "relu": {"relu": True},
    "relu, residual, other": {"relu": True, "residual": True, "other": True},
    "residual": {"relu": False, "residual": True},
    "fixed, residual, relu": {"relu": True, "residual": True, "fixed": True},
    "no weight": {"relu": True, "affine": False, "other": True},
}


def leaves_of(shape, order, dtype, options):
    """Return x, residual, weight and bias, those of them that there are."""
    generator = torch.Generator().manual_seed(0)
    names = ["x"] + ["residual"] * options.get("residual", False)
    leaves = {n: torch.randn(shape, generator=generator).to(dtype) for n in names}
    leaves = {n: in_order(image, order) for n, image in leaves.items()}
    if options.get("affine", True):
        leaves["weight"] = torch.rand(shape[1], generator=generator) + 0.5
        leaves["bias"] = torch.randn(shape[1], generator=generator)
    return leaves


def by_torch(x, weight=None, bias=None, residual=None, relu=True, fixed=None):
    z = F.batch_norm(x, *(fixed or (None, None)), weight, bias, fixed is None, 0.0, 1e-5)
    z = z if residual is None else z + residual
    return z.relu() if relu else z


def results(leaves, options, native):
    """Return the result and every gradient by name."""
    leaves = {k: v.detach().requires_grad_() for k, v in leaves.items()}
    x, fixed = leaves["x"], None
    if options.get("fixed"):
        steps = torch.linspace(0.5, 2, x.shape[1], dtype=torch.float64)
        dtype = torch.promote_types(x.dtype, torch.float32)
        fixed = (steps - 1).to(dtype), steps.to(dtype)
    learnt = {"weight": leaves.get("weight"), "bias": leaves.get("bias")}
    rest = {"residual": leaves.get("residual"), "relu": options["relu"], "fixed": fixed}
    if native:
        z, x, _ = native_norm(x, *learnt.values(), 1e-5, **rest)
    else:
        z = by_torch(x, **learnt, **rest)
    generator = torch.Generator().manual_seed(1)
    loss = (z.double() * torch.randn(z.shape, generator=generator)).sum()
    if options.get("other"):
        loss = loss + (x.double() * torch.randn(x.shape, generator=generator)).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"z": z.detach()} | {f"d{n}": g for n, g in zip(leaves, gradients)}


@pytest.mark.parametrize("dtype", list(FLOOR), ids=str)
@pytest.mark.parametrize("order", ["rows", "channels_last"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_result_and_gradients(shape, options, order, dtype):
    leaves = leaves_of(shape, order, dtype, options)
    exact = results({k: v.double() for k, v in leaves.items()}, options, native=False)
    plain = results(leaves, options, native=False)
    found = results({k: guarded(v) for k, v in leaves.items()}, options, native=True)
    for name, right in exact.items():
        assert found[name].isfinite().all(), name
        allowed = 2 * max(relative_error(plain[name], right), FLOOR[dtype])
        assert relative_error(found[name], right) <= allowed, name
        assert found[name].dtype == plain[name].dtype
        if name in ("z", "dx"):
            assert order_of(found[name]) == order_of(leaves["x"])


@pytest.mark.parametrize("mean", [1000.0, "outlier"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_moments_survive_a_large_mean_and_an_outlier(shape, mean):
    x = leaves_of(shape, "channels_last", torch.float32, {})["x"]
    if mean == "outlier":
        x[0, :, 0, 0] = 1e4
    else:
        x = x + mean
    y, moments = norm_native(guarded(x), None, None, None, None, 1e-5, False)
    variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(moments, torch.stack((mean, variance)), rtol=3e-6, atol=1e-7)
    right = by_torch(x.double(), relu=False)
    assert relative_error(y, right) <= 1e-6


@pytest.mark.parametrize("shape", [(5, 1, 31, 29), (40, 70, 8, 5), (64, 32, 16, 16)], ids=str)
def test_any_number_of_threads_gives_the_same_bits(shape):
    options = OPTIONS["relu, residual, other"]
    leaves = leaves_of(shape, "channels_last", torch.float32, options)
    before, runs = torch.get_num_threads(), []
    for threads in range(1, 9):
        torch.set_num_threads(threads)
        runs.append(results(leaves, options, native=True))
    torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(run[name].equal(found) for name, found in runs[0].items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(value):
    options = OPTIONS["relu, residual, other"]
    leaves = leaves_of((3, 20, 4, 4), "channels_last", torch.float32, options)
    leaves["x"][1, 3, 2, 2] = value
    leaves["residual"][0, 7, 1, 1] = float("nan")
    plain = results(leaves, options, native=False)
    for name, found in results(leaves, options, native=True).items():
        assert found.isnan().equal(plain[name].isnan()), name


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_of_gradients_are_those_of_torch(options):
    leaves = leaves_of((4, 6, 3, 3), "channels_last", torch.float32, options)

    def second(native):
        learnt = {k: v.detach().requires_grad_() for k, v in leaves.items()}
        x, weight, bias = (learnt.get(n) for n in ("x", "weight", "bias"))
        fixed = (torch.zeros(6), torch.ones(6)) if options.get("fixed") else None
        rest = {"residual": learnt.get("residual"), "relu": options["relu"], "fixed": fixed}
        if native:
            z, x, _ = native_norm(x, weight, bias, 1e-5, **rest)
        else:
            z = by_torch(x, weight, bias, **rest)
        loss = z.pow(3).sum() + x.pow(3).sum()
        first = torch.autograd.grad(loss, list(learnt.values()), create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        return torch.autograd.grad(penalty, list(learnt.values()))

    for found, right in zip(second(native=True), second(native=False)):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-2 * float(right.abs().max()))


def test_the_operators_say_what_they_return():
    leaves = leaves_of((2, 5, 3, 3), "rows", torch.float32, OPTIONS["residual"])
    x, residual, weight, bias = leaves.values()
    y, moments = norm_native(x, residual, None, weight, bias, 1e-5, True)
    torch.library.opcheck(norm_native, (x, residual, moments, weight, bias, 1e-5, True))
    arguments = (y, x, y, residual, moments, weight, bias, 1e-5, True, True, True)
    torch.library.opcheck(norm_native_backward, arguments)


def test_images_that_do_not_fit_are_refused():
    x = in_order(torch.randn(2, 5, 3, 3), "channels_last")
    assert norms.supports(x)
    for other in (x.contiguous(), x.double(), x[:0], x[:, :, 0], x[:, :4]):
        assert not norms.supports(other)
    with pytest.raises(NotImplementedError, match="channels_last and rows"):
        native_norm(x.contiguous(), None, None, 1e-5)
    with pytest.raises(ValueError, match="residual should be"):
        native_norm(x, None, None, 1e-5, residual=x[:1])
    with pytest.raises(ValueError, match="weight should be"):
        native_norm(x, torch.ones(4), None, 1e-5)
