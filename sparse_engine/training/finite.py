"""A loss or gradient that is not finite is found, with its step and layer, before it does harm.

What is watched stays on the device, in tensors that are written in place: nothing waits for a GPU,
and a CUDA graph can hold it all. The optimizer reads `found` and leaves a bad step out; from the
first step that may not be left out on, it leaves out all, so the weights stay what they were.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from sparse_engine.schema import check_like, demand

# On a GPU a look waits for all work before it, so steps are looked at together.
WINDOW = 50
# Loss scaling of fp16: halved where a gradient overflows, doubled after so many steps without.
FIRST_SCALE = 2.0**16
GROWTH_STEPS = 2000


class FiniteGuard:
    """Sums losses, scales them for fp16, and says which steps the optimizer leaves out.

    found: float32, 1 where the optimizer must leave the step out, else 0.
    scale: float32, what the loss is multiplied by before backward; 1 but for fp16.
    """

    def __init__(self, device: torch.device, scaling: bool = False, allowed: int = 0) -> None:
        """Begin with step 0.

        Args:
            device: of the network.
            scaling: whether losses are scaled. A gradient that overflows then lowers the scale and
                counts as bad only once the scale is below 1.
            allowed: how many bad steps may be left out before the run must fail.
        """
        self.window = 1 if device.type == "cpu" else WINDOW
        self.scaling, self.allowed = scaling, allowed
        start = FIRST_SCALE if scaling else 1.0
        self.scale = torch.full((), start, device=device)
        self.found = torch.zeros((), device=device)
        self._streak = torch.zeros((), device=device)
        # Sum and number of finite losses since mean(); steps seen; bad ones; the first too many.
        self._total, self._count, self._steps, self._skipped, self._fatal = (
            torch.full((), value, dtype=torch.float64, device=device) for value in (0, 0, 0, 0, -1)
        )

    def begin_at(self, step: int) -> None:
        """Count steps from a later one."""
        self._steps.fill_(step)

    def judge(self, loss: Tensor, gradients: Sequence[Tensor]) -> None:
        """Look at a step, after backward of scale * loss and before the optimizer; no sync."""
        # The largest element: a sum of squares overflows before the elements do.
        largest = get_total_norm(gradients, torch.inf)
        lost, overflown = ~loss.isfinite(), ~largest.isfinite()
        bad = lost | overflown
        counted = lost | (overflown & (self.scale < 1)) if self.scaling else bad
        self._total.add_(torch.where(lost, 0.0, loss.double()))
        self._count.add_(~lost)
        self._skipped.add_(counted)
        first = (self._skipped > self.allowed) & (self._fatal < 0)
        self._fatal.copy_(torch.where(first, self._steps, self._fatal))
        self.found.copy_(bad | (self._fatal >= 0))
        self._steps.add_(1)

    def adapt(self) -> None:
        """Adapt the scale to the step just made, once the optimizer has used it; no sync."""
        if self.scaling:
            self._streak.add_(1).mul_(1 - self.found)
            grown = torch.where(self._streak >= GROWTH_STEPS, 2.0, 1.0)
            self._streak.mul_(grown == 1)
            self.scale.mul_(torch.where(self.found > 0, 0.5, grown))

    def fatal_step(self) -> int | None:
        """Return the first step that could not be left out, None if there is none. Waits."""
        step = int(self._fatal)
        return None if step < 0 else step

    def skipped(self) -> int:
        """Return how many bad steps were left out. Waits."""
        return int(self._skipped)

    def mean(self) -> float:
        """Return the mean of the finite losses since the last call. Waits."""
        mean = float(self._total) / max(1.0, float(self._count))
        self._total.zero_()
        self._count.zero_()
        return mean

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        return {k: v.clone() for k, v in vars(self).items() if isinstance(v, Tensor)}

    def check_state(self, state: Any) -> None:
        """Raise InputError unless a state is of a run without failure that is at the same step."""
        check_like(state, self.state_dict(), "guard")
        numbers = {name: float(value) for name, value in state.items()}
        for name, number in numbers.items():
            count = (-1 if name == "_fatal" else 0) <= number < math.inf
            demand(count or name == "_total", f"guard.{name}", "a count", number)
        demand(math.isfinite(numbers["_total"]), "guard._total", "finite", numbers["_total"])
        demand(numbers["_fatal"] == -1, "guard._fatal", "-1: no step has failed", numbers["_fatal"])
        demand(numbers["scale"] > 0, "guard.scale", "above 0", numbers["scale"])
        step = int(self._steps)
        demand(numbers["_steps"] == step, "guard._steps", f"{step} there", numbers["_steps"])

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from state_dict()."""
        for name, value in state.items():
            getattr(self, name).copy_(value)


def diagnose(model: nn.Module, loss: Callable[[], Tensor], x: Tensor, step: int) -> str:
    """Return what is not finite in a step that is made again, and in which layer first.

    Args:
        model: with the weights of that step.
        loss: runs the model forward on x.
        x: images of the step.
        step: its number, for the words.
    """
    model.zero_grad(set_to_none=True)
    with _broken_layers(model) as layers:
        value = loss()
    if layers or not bool(torch.isfinite(x).all()) or not bool(value.isfinite()):
        layer = _first_of(layers, x)
        return f"the loss is not finite at step {step}; first layer with such an output: {layer}"
    value.backward()
    bad = [
        name
        for name, module in model.named_modules()
        for p in module.parameters(recurse=False)
        if p.grad is not None and not bool(p.grad.isfinite().all())
    ]
    layer = bad[-1] if bad else "none when it is computed again"
    return f"a gradient is not finite at step {step}; first layer in backward with one: {layer}"


@torch.no_grad()
def broken_member(
    models: Iterable[nn.Module],
    predicted: Iterable[tuple[Tensor, Tensor]],
    batch: Callable[[], tuple[Tensor, Tensor]],
    step: int,
) -> str | None:
    """Return in words that, and where, the last update has broken a member's weights, if it has.

    Args:
        models: the members.
        predicted: the log-probabilities of each on a whole split, and labels.
        batch: gives images [N, C, H, W] to look for the layer with, and labels.
        step: how many were made, for the words.
    """
    for model, (logs, _) in zip(models, predicted, strict=True):
        if not bool(logs.isfinite().all()):
            x, _ = batch()
            with _broken_layers(model.eval()) as layers:
                model(x)
            return (
                f"predictions are not finite at step {step}; first layer with such an output: "
                f"{_first_of(layers, x)}"
            )
    return None


def _first_of(layers: Sequence[str], x: Tensor) -> str:
    """Return in words where a forward pass of images x went wrong first."""
    if not bool(torch.isfinite(x).all()):
        return "the input images"
    return layers[0] if layers else "none: the loss itself"


@contextmanager
def _broken_layers(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of leaf modules whose output is not finite, in the order of forward."""
    names: list[str] = []

    def look(name: str, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            names.append(name)

    leaves = [(n, m) for n, m in model.named_modules() if next(m.children(), None) is None]
    handles = [leaf.register_forward_hook(partial(look, name)) for name, leaf in leaves]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def statistics(model: nn.Module) -> list[Tensor]:
    """Return the buffers that a forward pass in training mode changes: a bad step's are undone."""
    named = model.named_buffers()
    return [b for n, b in named if b.is_floating_point() and not n.endswith("block_check")]


def undo(buffers: Iterable[Tensor], before: Iterable[Tensor], found: Tensor) -> None:
    """Give buffers their earlier values where `found` is 1."""
    for buffer, old in zip(buffers, before):
        buffer.copy_(torch.where(found > 0, old, buffer))
