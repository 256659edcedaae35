"""The correctness check of a training step: gradients against those of the same network, dense.

What is right is computed in a wider type: fp32 for bf16, fp64 for fp32. The measure of a contender
is what the dense library itself loses in the contender's type: a layer's gradient may be off by
three times as much. A step that forgets or misplaces something is off by 1 or more, and gives no
row; layer_check.py finds what is less wrong than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.speed.steps import Step
from bench.speed.variant import Case
from sparse_engine import densify
from sparse_engine.layers.base import SparseLayer
from sparse_engine.models.workload import COUNTED
from sparse_kernels import BlockLayout
from sparse_kernels.operators.reference import gather_blocks

# Sums in another order, in fp32, through many layers.
SMALLEST_LIMIT = 1e-3
MULTIPLE = 3.0
# What has nothing to do with the right result is off by 1 or more, whatever the library loses.
LARGEST_LIMIT = 0.8


class WrongResult(RuntimeError):
    """A contender whose results are not those of the dense network."""


@dataclass
class Reference:
    """Right gradients of a case by layer, and how far off each may be."""

    gradients: dict[str, Tensor]
    limits: dict[str, float]

    @classmethod
    def of(cls, case: Case, device: str) -> Reference:
        """Work out the gradients of a case's first step on a device."""
        step = Step(case, "masked" if case.sparsity else "dense", device)
        model = densify(step.model)
        found = _gradients_of_dense(model, step, step.x, bf16=device == "cuda")
        wide = torch.float32 if device == "cuda" else torch.float64
        with without_tf32():
            right = _gradients_of_dense(model.to(wide), step, step.x.to(wide), bf16=False)
        return cls(right, {n: limit(relative_error(found[n], right[n])) for n in right})

    def check(self, step: Step) -> float:
        """Take a step from its first weights; return the largest relative error.

        Raises:
            WrongResult: a layer's gradient is off by more than it may be.
        """
        step.run()
        found = gradients(step.model, step.layouts)
        errors = {n: relative_error(found[n], right) for n, right in self.gradients.items()}
        refuse(errors, self.limits)
        return max(errors.values())


def limit(lost: float) -> float:
    """Return how far off a result may be where the dense library is off by `lost`."""
    return min(max(SMALLEST_LIMIT, MULTIPLE * lost), LARGEST_LIMIT)


def refuse(errors: Mapping[str, float], limits: Mapping[str, float]) -> None:
    """Raise WrongResult unless every error is within its limit."""
    # A NaN is within none.
    wrong = [name for name, error in errors.items() if not error <= limits[name]]
    if wrong:
        worst = max(wrong, key=lambda name: errors[name] / limits[name])
        raise WrongResult(
            f"{worst} is off by {errors[worst]:.1e}, {limits[worst]:.1e} allowed "
            f"({len(wrong)} of {len(errors)} results)"
        )


def relative_error(found: Tensor, right: Tensor) -> float:
    """Return the norm of the difference over that of what is right."""
    found, right = found.detach(), right.detach()
    difference = found.to(right.dtype) - right
    return float(difference.norm() / right.norm().clamp(min=1e-30))


def signs_like(y: Tensor) -> Tensor:
    """Return gradients of +1 and -1, exact in every type, in the order of y."""
    signs = torch.arange(y.numel(), device=y.device).mul(40503).bitwise_right_shift(7) % 2
    gradient = torch.empty_like(y)
    # By logical place, so that both orders get the same numbers.
    return gradient.copy_((2 * signs - 1).view(y.shape))


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let convolutions in fp32 be exact inside."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def gradients(model: nn.Module, layouts: dict[str, BlockLayout]) -> dict[str, Tensor]:
    """Return the weight gradients by layer, as blocks where a case has blocks."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            found[name] = layer.values.grad
        elif isinstance(layer, COUNTED):
            gradient, layout = layer.weight.grad, layouts.get(name)
            if layout is not None:
                dense = gradient.reshape(layout.shape)
                gradient = gather_blocks(dense, layout.tensors(), layout.sizes())
            found[name] = gradient
    return {name: gradient.detach() for name, gradient in found.items()}


def _gradients_of_dense(model: nn.Module, step: Step, x: Tensor, bf16: bool) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    with torch.autocast(step.device, torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(model(x), step.y)
    loss.backward()
    return gradients(model, step.layouts)
