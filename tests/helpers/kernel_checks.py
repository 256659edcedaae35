"""Checks of the Triton kernels against float64, of output and every gradient."""

import torch
import torch.nn.functional as F
from kernel_cases import DEVICE, FLOOR, Case, guarded, make_layout, relative_error

from sparse_kernels import BlockLayout, Norm, block_conv2d, block_conv2d_fused
from sparse_kernels.memory_order import in_order, order_of
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks

EVERYTHING = {"norm": True, "rectified": True, "residual": True, "statistics": True}
FUSIONS = {
    "statistics": {"statistics": True},
    "residual": {"residual": True, "other": True},
    "norm": {"norm": True},
    "fixed norm, other gradient": {"norm": True, "batch": False, "other": True},
    "norm, relu, residual, statistics": EVERYTHING,
    "all": {**EVERYTHING, "other": True},
}


def _results(x, values, layout, bias, case: Case, grad, dense: bool):
    """Return output and gradients of the sparse operator, or of its dense definition."""
    leaves = [t.detach().requires_grad_() for t in (x, values)]
    bias = None if bias is None else bias.detach().requires_grad_()
    geometry = (case.stride, case.padding, case.dilation)
    if dense:
        weight = scatter_blocks(leaves[1], layout.tensors(), layout.sizes())
        y = F.conv2d(leaves[0], weight, bias, *geometry)
    else:
        y = block_conv2d(*leaves, layout, bias, *geometry)
    y.backward(grad)
    found = {"y": y.detach(), "dx": leaves[0].grad, "dvalues": leaves[1].grad}
    return found if bias is None else {**found, "dbias": bias.grad}


def check_convolution(
    case: Case, dtype: torch.dtype, drawn: bool = False, floor: float | None = None
) -> None:
    """Compare with float64; the error may be twice that of dense PyTorch in the same data type.

    A case drawn at random may have a single output, near zero by cancellation, where PyTorch is
    right by luck: then also what one rounding of the sum of absolute values makes.
    """
    out_channels, in_channels = case.channels
    layout = make_layout(case, (out_channels, in_channels, *case.kernel))
    make = lambda *shape: torch.randn(*shape).to(DEVICE, dtype)  # noqa: E731
    x = in_order(make(case.batch, in_channels, *case.image), case.order)
    dense = make(out_channels, in_channels, *case.kernel)
    values = gather_blocks(dense, layout.tensors(), layout.sizes())
    bias = make(out_channels) if case.bias else None
    grad = in_order(make(case.batch, out_channels, *case.output), case.order)
    wide = [None if t is None else t.double() for t in (x, values, bias, grad)]
    exact = _results(wide[0], wide[1], layout, wide[2], case, wide[3], dense=True)
    positive = [None if t is None else t.abs() for t in wide]
    sums = _results(positive[0], positive[1], layout, positive[2], case, positive[3], dense=True)
    plain = _results(x, values, layout, bias, case, grad, dense=True)
    ours = _results(guarded(x), guarded(values), layout, bias, case, guarded(grad), dense=False)
    # An image of one pixel or one channel fits several orders, and says nothing of the result's.
    if case.order != "contiguous" and order_of(x) == case.order:
        assert in_order(ours["y"], case.order) is ours["y"]
    for name, found in ours.items():
        assert found.isfinite().all(), name
        allowed = 2 * max(relative_error(plain[name], exact[name]), floor or FLOOR[dtype])
        if drawn:
            allowed += 1.2e-7 * float(sums[name].norm() / exact[name].norm().clamp(min=1e-30))
        assert relative_error(found, exact[name]) <= allowed, name


def _fused_results(leaves, layout: BlockLayout, case: Case, options: dict, upstream, sparse: bool):
    """Return outputs and gradients by name, of the fused operators or of dense PyTorch."""
    leaves = {k: v.detach().requires_grad_() for k, v in leaves.items()}
    x, values, bias, residual = (leaves.get(k) for k in ("x", "values", "bias", "residual"))
    geometry = (case.stride, case.padding, case.dilation)
    norm = _norm_of(x, leaves, options) if options.get("norm") else None
    if sparse:
        surroundings = {"norm": norm, "residual": residual}
        y, mean, variance, x = block_conv2d_fused(
            *(x, values, layout, bias, *geometry),
            **surroundings,
            statistics=options.get("statistics", False),
        )
    else:
        z = norm.apply(x) if norm else x
        y = F.conv2d(z, scatter_blocks(values, layout.tensors(), layout.sizes()), bias, *geometry)
        y = y if residual is None else y + residual
        variance, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    loss = (y.double() * upstream["y"].double()).sum()
    if options.get("other"):
        loss = loss + (x.double() * upstream["x"].double()).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    found = {"y": y, "mean": mean, "variance": variance} if options.get("statistics") else {"y": y}
    return {k: v.detach() for k, v in found.items()} | {
        f"d{n}": g for n, g in zip(leaves, gradients)
    }


def _norm_of(x, leaves, options: dict) -> Norm:
    """Return the norm of x, or one by other statistics."""
    batch, wide = options.get("batch", True), torch.promote_types(x.dtype, torch.float32)
    variance, mean = torch.var_mean(x.detach().to(wide), (0, 2, 3), correction=0)
    if not batch:
        mean, variance = mean * 0.5, variance * 2
    relu = options.get("rectified", False)
    return Norm(mean, variance, leaves["weight"], leaves["shift"], 1e-5, batch, relu)


def check_fused(
    case: Case,
    options: dict,
    dtype: torch.dtype,
    shift_by: float = 0.0,
    floor: float | None = None,
) -> None:
    out_channels, in_channels = case.channels
    layout = make_layout(case, (out_channels, in_channels, *case.kernel))
    dense = torch.randn(out_channels, in_channels, *case.kernel).to(DEVICE, dtype)

    def images(*shape: int) -> torch.Tensor:
        return in_order(torch.randn(*shape).to(DEVICE, dtype), case.order)

    leaves = {
        "x": images(case.batch, in_channels, *case.image),
        "values": gather_blocks(dense, layout.tensors(), layout.sizes()),
    }
    if case.bias:
        leaves["bias"] = torch.randn(out_channels).to(DEVICE, dtype)
    if options.get("residual"):
        leaves["residual"] = images(case.batch, out_channels, *case.output)
    if options.get("norm"):
        leaves["weight"] = torch.rand(in_channels, device=DEVICE) + 0.5
        leaves["shift"] = torch.randn(in_channels, device=DEVICE) + shift_by
    upstream = {
        "y": torch.randn(case.batch, out_channels, *case.output).to(DEVICE, dtype),
        "x": torch.randn(case.batch, in_channels, *case.image).to(DEVICE, dtype),
    }
    wide = {k: v.double() for k, v in leaves.items()}
    exact = _fused_results(wide, layout, case, options, upstream, sparse=False)
    plain = _fused_results(leaves, layout, case, options, upstream, sparse=False)
    poisoned = {k: guarded(v) for k, v in leaves.items()}
    for name, found in _fused_results(
        poisoned, layout, case, options, upstream, sparse=True
    ).items():
        assert found.isfinite().all(), name
        allowed = 2 * max(relative_error(plain[name], exact[name]), floor or FLOOR[dtype])
        assert relative_error(found, exact[name]) <= allowed, name
