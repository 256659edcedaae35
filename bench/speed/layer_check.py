"""The tight half of the correctness check: every sparse layer alone, on the input it really gets.

A network's gradients say little about a kernel in bf16: after thirty layers those of the dense
library are off by 30 to 50 % as well. A layer's own output and gradients are not. In a fused step a
layer is called with what surrounds it; each of these calls is checked as well (fused_check.py).
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.speed.correctness import refuse, relative_error, signs_like, without_tf32
from bench.speed.fused_check import fused_errors
from bench.speed.steps import Step
from sparse_engine.layers import fused
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.modules import SparseConv2d
from sparse_kernels import BlockLayout, Norm
from sparse_kernels.dispatch.backend import forced_backend
from sparse_kernels.functional_fused import Geometry
from sparse_kernels.operators.reference import gather_blocks

# Weights and results are rounded once: about 4e-3 in bf16, 1e-6 in fp32.
LIMITS = {"cuda": 2e-2, "cpu": 1e-4}
RESULTS = ("output", "input gradient", "weight gradient")


def check_layers(step: Step) -> float | None:
    """Return the largest relative error of the sparse layers' results; None without any layer.

    Raises:
        WrongResult: a result is off by more than rounding explains.
    """
    errors: dict[str, float] = {}
    for layer, x in _inputs(step).items():
        name = next(n for n, m in step.model.named_modules() if m is layer)
        for result, found, right in zip(RESULTS, _found(step, layer, x), _right(layer, x)):
            errors[f"{name} {result}"] = relative_error(found, right)
    errors |= _fused(step)
    refuse(errors, dict.fromkeys(errors, LIMITS[step.device]))
    return max(errors.values(), default=None)


def _fused(step: Step) -> dict[str, float]:
    """Return the errors of each fused call that a forward makes."""
    if "fuse" not in step.options:
        return {}
    names = {id(m.layout): n for n, m in step.model.named_modules() if isinstance(m, SparseLayer)}
    errors: dict[str, float] = {}
    run = fused.conv2d_by_tile

    def checked(
        x: Tensor,
        values: Tensor,
        layout: BlockLayout,
        bias: Tensor | None,
        geometry: Geometry,
        norm: Norm | None,
        residual: Tensor | None,
        statistics: bool,
    ) -> Any:
        around = {"norm": norm, "residual": residual, "statistics": statistics}
        found = fused_errors(x, values, layout, bias, *geometry, **around)
        errors.update({f"{names[id(layout)]} fused {n}": error for n, error in found.items()})
        return run(x, values, layout, bias, geometry, norm, residual, statistics)

    with mock.patch.object(fused, "conv2d_by_tile", checked):
        _forward(step)
    return errors


def _inputs(step: Step) -> dict[nn.Module, Tensor]:
    """Return what each sparse layer is given in a forward."""
    seen: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen[layer] = arguments[0].detach()

    layers = [m for m in step.model.modules() if isinstance(m, SparseLayer)]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    _forward(step)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def _forward(step: Step) -> None:
    bf16 = torch.autocast(step.device, torch.bfloat16, enabled=step.device == "cuda")
    with forced_backend(step.backend), bf16:
        step.model(step.x)


def _found(step: Step, layer: SparseLayer, x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    with forced_backend(step.backend):
        with torch.autocast(step.device, torch.bfloat16, enabled=step.device == "cuda"):
            y = layer(x)
        return y, *torch.autograd.grad(y, (x, layer.values), signs_like(y))


def _right(layer: SparseLayer, x: Tensor) -> tuple[Tensor, ...]:
    """Return the dense library's results, in fp32."""
    x = x.float().requires_grad_()
    weight = layer.dense_weight().detach().requires_grad_()
    with without_tf32():
        if isinstance(layer, SparseConv2d):
            geometry = (layer.stride, layer.padding, layer.dilation)
            y = F.conv2d(x, weight, layer.bias, *geometry)
        else:
            y = F.linear(x, weight, layer.bias)
        dx, dw = torch.autograd.grad(y, (x, weight), signs_like(y))
    layout = layer.layout
    blocks = gather_blocks(dw.reshape(layout.shape), layout.tensors(), layout.sizes())
    return y, dx, blocks
