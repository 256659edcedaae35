"""One fused convolution against its definition: operators one after another, in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.speed.correctness import relative_error, signs_like, without_tf32
from sparse_kernels import BlockLayout, Norm, block_conv2d_fused
from sparse_kernels.dispatch.backend import forced_backend

Tensors = dict[str, Tensor]


def fused_errors(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    *rest: Any,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    **switches: bool,
) -> dict[str, float]:
    """Return the relative errors of what block_conv2d_fused gives for these arguments, by name.

    They are y, its statistics if asked for, and the gradients of x (which others read as well), of
    the values, the residual, and the weight and bias of the norm. It runs on the backend and with
    the autocast that are in force; the definition runs in fp32.
    """
    leaves = {"x": x, "values": values, "residual": residual}
    if norm is not None:
        leaves |= {"norm weight": norm.weight, "norm bias": norm.bias}
    kept = {name: t.detach() for name, t in leaves.items() if t is not None}
    found = _results(kept, layout, rest, norm, switches)
    wide = {name: t.float() for name, t in kept.items()}
    exact = torch.autocast(x.device.type, enabled=False)
    with forced_backend("masked"), without_tf32(), exact:
        right = _results(wide, layout, _wide(rest), norm, switches)
    return {name: relative_error(found[name], right[name]) for name in right}


@torch.enable_grad()
def _results(
    leaves: Tensors,
    layout: BlockLayout,
    rest: tuple[Any, ...],
    norm: Norm | None,
    switches: Mapping[str, bool],
) -> Tensors:
    leaves = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    if norm is not None:
        norm = norm._replace(weight=leaves["norm weight"], bias=leaves["norm bias"])
    found = block_conv2d_fused(
        leaves["x"],
        leaves["values"],
        layout,
        *rest,
        norm=norm,
        residual=leaves.get("residual"),
        **switches,
    )
    given = (found.y, found.x)
    gradients = torch.autograd.grad(given, list(leaves.values()), [signs_like(t) for t in given])
    results = {"output": found.y}
    if switches.get("statistics"):
        results |= {"mean": found.mean, "variance": found.variance}
    return results | {f"{name} gradient": g for name, g in zip(leaves, gradients)}


def _wide(rest: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the other arguments, a bias among them in fp32."""
    return tuple(part.float() if isinstance(part, Tensor) else part for part in rest)
