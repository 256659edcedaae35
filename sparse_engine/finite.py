"""A loss that is not finite is found, with its step and layer, before it reaches a checkpoint."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from sparse_engine.errors import RunFailure

# On a GPU a look at the loss waits for all work before it, so losses are looked at together.
WINDOW = 50


class LossGuard:
    """Collects losses and raises RunFailure for the first that is not finite."""

    def __init__(self, device: torch.device) -> None:
        """Look at every loss on a CPU, at WINDOW losses together elsewhere."""
        self.window = 1 if device.type == "cpu" else WINDOW
        self._steps: list[int] = []
        self._losses: list[Tensor] = []
        self._sum, self._count = 0.0, 0
        self._model: nn.Module | None = None
        self._x: Tensor | None = None

    def add(self, step: int, loss: Tensor, model: nn.Module, x: Tensor) -> None:
        """Take the loss of a step, before the optimizer has used it."""
        self._steps.append(step)
        self._losses.append(loss.detach())
        self._model, self._x = model, x
        if len(self._steps) >= self.window:
            self._look()

    def check(self) -> float:
        """Look at all losses taken; return the mean since the last call."""
        self._look()
        mean = self._sum / max(1, self._count)
        self._sum, self._count = 0.0, 0
        return mean

    def check_predictions(self, step: int, probabilities: Tensor) -> None:
        """Look at predictions [N, K] made after `step`: its update may have broken the weights."""
        if not bool(torch.isfinite(probabilities).all()):
            self._model.eval()
            self._fail("predictions are", step)

    def _look(self) -> None:
        if not self._losses:
            return
        losses = torch.stack(self._losses).float().cpu()
        steps, self._steps, self._losses = self._steps, [], []
        finite = torch.isfinite(losses)
        if not bool(finite.all()):
            self._fail("the loss is", steps[int((~finite).nonzero()[0])])
        self._sum += float(losses.sum())
        self._count += len(losses)

    def _fail(self, what: str, step: int) -> NoReturn:
        raise RunFailure(
            f"{what} not finite at step {step}; first layer with such an output: "
            f"{first_bad_layer(self._model, self._x)}; any checkpoint is from before; "
            "try a lower --lr"
        )


@torch.no_grad()
def first_bad_layer(model: nn.Module, x: Tensor) -> str:
    """Return the name of the first module, in the order of forward, with a non-finite output."""
    if not bool(torch.isfinite(x).all()):
        return "the input images"
    found: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            handles.append(module.register_forward_hook(_watch(found, name)))
    model(x)
    for handle in handles:
        handle.remove()
    return found[0] if found else "none: the loss itself"


def _watch(found: list[str], name: str):
    def look(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            found.append(name)

    return look
