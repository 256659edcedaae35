"""Batch norm, ReLU and residual in single passes, against PyTorch's operators in float64."""

import pytest
import torch
from kernel_cases import DEVICE, FLOOR, guarded, relative_error

from sparse_kernels.memory_order import in_order, order_of
from sparse_kernels.operators.batch_norm import Norm, normalise, tile_statistics

pytestmark = pytest.mark.usefixtures("poisoned_kernels")

# One tile, several, and channels that fill none; orders as networks have them.
SHAPES = {"small": (3, 5, 2, 3), "several tiles": (20, 70, 4, 3), "linear": (130, 16, 1, 1)}


def run(leaves, options: dict, upstream, fused: bool):
    """Return the result and every gradient by name."""
    leaves = {k: v.detach().requires_grad_() for k, v in leaves.items()}
    x, residual = leaves["x"], leaves.get("residual")
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    norm = Norm(mean, variance, leaves["weight"], leaves["bias"], 1e-5, *options["switches"])
    z, x = normalise(x, norm, residual) if fused else (norm.apply(x, residual), x)
    loss = (z.double() * upstream[0]).sum()
    if options.get("other"):
        loss = loss + (x.double() * upstream[1]).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"z": z.detach()} | {f"d{n}": g for n, g in zip(leaves, gradients)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("order", ["rows", "channels_last", "contiguous"])
@pytest.mark.parametrize(
    "options",
    [
        {"switches": (True, True)},
        {"switches": (True, True), "residual": True, "other": True},
        {"switches": (True, False), "other": True},
        {"switches": (False, False), "residual": True},
    ],
    ids=["batch, relu", "batch, relu, residual, other", "batch, other", "fixed, residual"],
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_normalise(shape, options, order, dtype):
    torch.manual_seed(0)
    leaves = {"x": in_order(torch.randn(shape).to(DEVICE, dtype), order)}
    if options.get("residual"):
        leaves["residual"] = in_order(torch.randn(shape).to(DEVICE, dtype), order)
    leaves["weight"] = torch.rand(shape[1], device=DEVICE) + 0.5
    leaves["bias"] = torch.randn(shape[1], device=DEVICE)
    upstream = torch.randn(2, *shape, device=DEVICE).to(dtype).double()
    exact = run({k: v.double() for k, v in leaves.items()}, options, upstream, fused=False)
    plain = run(leaves, options, upstream, fused=False)
    for name, found in run(
        {k: guarded(v) for k, v in leaves.items()}, options, upstream, True
    ).items():
        assert found.isfinite().all(), name
        allowed = 2 * max(relative_error(plain[name], exact[name]), FLOOR[dtype])
        assert relative_error(found, exact[name]) <= allowed, name
        if found.ndim == 4 and order != "contiguous":
            assert order_of(found) == order_of(leaves["x"])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_statistics_survive_a_large_mean(shape):
    torch.manual_seed(0)
    x = guarded(in_order(torch.randn(shape, device=DEVICE) + 1000, "rows"))
    mean, variance = tile_statistics(x).joined().sums[0]
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-6, atol=0)
    exact = x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance.double(), exact, rtol=1e-4, atol=0)


def test_what_is_not_used_costs_no_pass():
    x = torch.randn(2, 3, 2, 2, device=DEVICE, requires_grad=True)
    norm = Norm(*torch.ones(4, 3, device=DEVICE))
    _, again = normalise(x, norm)
    again.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert not normalise(x.detach(), norm)[0].requires_grad
