"""The correctness checks of a training step, against the same network by the dense library.

Whole steps: gradients are compared with those of a wider type, fp32 for bf16, fp64 for fp32. A
layer's may be off by three times what the dense library itself loses in the variant's type; a step
that forgets or misplaces something is off by 1 or more, and gives no row.

Layers: a network's gradients say little about a kernel in bf16, for after thirty layers those of
the dense library are off by 30 to 50 % as well. A layer's own output and gradients are not: each
sparse layer is run alone on the input it really gets, and in a fused step each call of one with
what surrounds it, against their definition in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.speed.problems import blocks_of
from bench.speed.steps import Step
from bench.speed.variant import Case, Variant
from sparse_engine import densify
from sparse_engine.layers import fused
from sparse_engine.layers.base import SparseLayer
from sparse_engine.models.workload import COUNTED
from sparse_kernels import BlockLayout, Norm, block_conv2d_fused
from sparse_kernels.dispatch.backend import forced_backend

# Sums in another order, in fp32, through many layers.
SMALLEST_LIMIT = 1e-3
MULTIPLE = 3.0
# What has nothing to do with the right result is off by 1 or more, whatever the library loses.
LARGEST_LIMIT = 0.8
# Of one layer, whose weights and results are rounded once: about 4e-3 in bf16, 1e-6 in fp32.
LAYER_LIMITS = {"bf16": 2e-2, "fp32": 1e-4}


class WrongResult(RuntimeError):
    """A variant whose results are not those of the dense network."""


@dataclass
class Reference:
    """Right gradients of a case by layer, and how far off each may be."""

    gradients: dict[str, Tensor]
    limits: dict[str, float]

    @classmethod
    def of(cls, case: Case, device: str, bf16: bool = False) -> Reference:
        """Work out the gradients of a case's first step on a device, for steps in bf16 or fp32."""
        kind = "slim" if case.slim else "masked" if case.sparsity else "dense"
        step = Step(case, Variant(kind), device)
        model = densify(step.model)
        library = _gradients_of_dense(model, step, step.x, bf16)
        wide = torch.float32 if bf16 else torch.float64
        with without_tf32():
            right = _gradients_of_dense(model.to(wide), step, step.x.to(wide), bf16=False)
        return cls(right, {n: limit(relative_error(library[n], right[n])) for n in right})

    def check(self, step: Step) -> float:
        """Take a step from its first weights; return the largest relative error.

        Raises:
            WrongResult: a layer's gradient is off by more than it may be.
        """
        step.run()
        own = gradients(step.model, step.layouts)
        return refuse(_errors(own, self.gradients), self.limits)


def check_layers(step: Step) -> float | None:
    """Return the largest relative error of the sparse layers' results; None without any layer.

    Raises:
        WrongResult: a result is off by more than rounding explains.
    """
    names = {m: n for n, m in step.model.named_modules() if isinstance(m, SparseLayer)}
    errors = {
        f"{names[layer]} {result}": error
        for layer, x in _inputs(step).items()
        for result, error in _errors(_of_layer(step, layer, x), _of_library(layer, x)).items()
    }
    if step.variant.fuse:
        errors |= _errors_of_fused_calls(step, {m.layout: n for m, n in names.items()})
    return refuse(errors, dict.fromkeys(errors, LAYER_LIMITS[step.dtype])) if errors else None


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
    the autocast that are in force; the definition, operators one after another, runs in fp32.
    """
    leaves = {"x": x, "values": values, "residual": residual}
    if norm is not None:
        leaves |= {"norm weight": norm.weight, "norm bias": norm.bias}
    leaves = {name: t.detach() for name, t in leaves.items() if t is not None}
    own = _of_fused(leaves, layout, rest, norm, switches)
    leaves = {name: t.float() for name, t in leaves.items()}
    rest = tuple(part.float() if isinstance(part, Tensor) else part for part in rest)
    exact = torch.autocast(x.device.type, enabled=False)
    with forced_backend("masked"), without_tf32(), exact:
        return _errors(own, _of_fused(leaves, layout, rest, norm, switches))


def limit(lost: float) -> float:
    """Return how far off a result may be where the dense library is off by `lost`."""
    return min(max(SMALLEST_LIMIT, MULTIPLE * lost), LARGEST_LIMIT)


def refuse(errors: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """Return the largest error, or raise WrongResult unless every one is within its limit."""
    # A NaN is within none.
    wrong = [name for name, error in errors.items() if not error <= limits[name]]
    if wrong:
        worst = max(wrong, key=lambda name: errors[name] / limits[name])
        raise WrongResult(
            f"{worst} is off by {errors[worst]:.1e}, {limits[worst]:.1e} allowed "
            f"({len(wrong)} of {len(errors)} results)"
        )
    return max(errors.values())


def relative_error(result: Tensor, right: Tensor) -> float:
    """Return the norm of the difference over that of what is right."""
    result, right = result.detach(), right.detach()
    difference = result.to(right.dtype) - right
    return float(difference.norm() / right.norm().clamp(min=1e-30))


def gradients(model: nn.Module, layouts: dict[str, BlockLayout]) -> dict[str, Tensor]:
    """Return the weight gradients by layer, as blocks where a case has blocks."""
    by_layer = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            by_layer[name] = layer.values.grad
        elif isinstance(layer, COUNTED):
            layout, gradient = layouts.get(name), layer.weight.grad
            by_layer[name] = gradient if layout is None else blocks_of(gradient, layout)
    return {name: gradient.detach() for name, gradient in by_layer.items()}


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let convolutions in fp32 be exact inside."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _errors(results: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: relative_error(results[name], right[name]) for name in right}


def _gradients_of_dense(model: nn.Module, step: Step, x: Tensor, bf16: bool) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    with torch.autocast(step.device, torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(model(x), step.y)
    loss.backward()
    return gradients(model, step.layouts)


@torch.no_grad()
def _forward(step: Step) -> None:
    with forced_backend(step.variant.backend), _autocast(step):
        step.model(step.x)


def _autocast(step: Step) -> torch.autocast:
    return torch.autocast(step.device, torch.bfloat16, enabled=step.bf16)


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


def _errors_of_fused_calls(step: Step, names: Mapping[BlockLayout, str]) -> dict[str, float]:
    """Return the errors of each fused call that a forward makes."""
    errors: dict[str, float] = {}
    run = fused.conv2d_by_tile

    def checked(*call: Any) -> Any:
        x, values, layout, bias, geometry, norm, residual, statistics = call
        around = {"norm": norm, "residual": residual, "statistics": statistics}
        own = fused_errors(x, values, layout, bias, *geometry, **around)
        errors.update({f"{names[layout]} fused {name}": error for name, error in own.items()})
        return run(*call)

    with mock.patch.object(fused, "conv2d_by_tile", checked):
        _forward(step)
    return errors


def _of_layer(step: Step, layer: SparseLayer, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    with forced_backend(step.variant.backend):
        with _autocast(step):
            y = layer(x)
        return _results(y, x, layer.values)


def _of_library(layer: SparseLayer, x: Tensor) -> dict[str, Tensor]:
    """Return what a layer should give: the dense library's results, in fp32."""
    x, dense = x.float().requires_grad_(), layer.to_dense()
    with without_tf32():
        results = _results(dense(x), x, dense.weight)
    return results | {"weight gradient": blocks_of(results["weight gradient"], layer.layout)}


def _results(y: Tensor, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    dx, dw = torch.autograd.grad(y, (x, weight), _signs_like(y))
    return {"output": y, "input gradient": dx, "weight gradient": dw}


@torch.enable_grad()
def _of_fused(
    leaves: Mapping[str, Tensor],
    layout: BlockLayout,
    rest: tuple[Any, ...],
    norm: Norm | None,
    switches: Mapping[str, bool],
) -> dict[str, Tensor]:
    leaves = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    x, values, residual = leaves["x"], leaves["values"], leaves.get("residual")
    if norm is not None:
        norm = norm._replace(weight=leaves["norm weight"], bias=leaves["norm bias"])
    out = block_conv2d_fused(x, values, layout, *rest, norm=norm, residual=residual, **switches)
    given = (out.y, out.x)
    gradients = torch.autograd.grad(given, list(leaves.values()), [_signs_like(t) for t in given])
    results = {"output": out.y}
    if switches.get("statistics"):
        results |= {"mean": out.mean, "variance": out.variance}
    return results | {f"{name} gradient": g for name, g in zip(leaves, gradients)}


def _signs_like(y: Tensor) -> Tensor:
    """Return gradients of +1 and -1, exact in every type, in the order of y."""
    signs = torch.arange(y.numel(), device=y.device).mul(40503).bitwise_right_shift(7) % 2
    # By logical place, so that both orders get the same numbers.
    return torch.empty_like(y).copy_((2 * signs - 1).view(y.shape))
