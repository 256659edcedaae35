"""What each convolution and linear layer of a model is asked to do in a training step."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_engine.models.members import training_pair


@dataclass(frozen=True)
class Problem:
    """A call of a dense layer; calls that compare equal take equally long.

    layer: as print(module) shows it; sizes: of its input; positions: vectors of output channels;
    input_gradient: whether backward goes on beyond it.
    """

    layer: str
    sizes: tuple[int, ...]
    positions: int
    input_gradient: bool


def layer_problems(
    model: nn.Module, image: Sequence[int], batch: int, names: Container[str]
) -> dict[str, list[Problem]]:
    """Return the calls of some layers in one training step, by layer name.

    Args:
        model: dense; a copy of it is run on the meta device, so nothing is computed.
        image: (C, H, W).
        batch: images a step.
        names: of nn.Conv2d and nn.Linear modules. One that is never called as a module has none.
    """
    twin = copy.deepcopy(model).to("meta").train()
    found: dict[str, list[Problem]] = {n: [] for n, _ in twin.named_modules() if n in names}

    def note(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, channels = inputs[0], module.weight.shape[0]
            positions = output.numel() // channels
            found[name].append(Problem(str(module), tuple(x.shape), positions, x.requires_grad))

        return hook

    for name in found:
        twin.get_submodule(name).register_forward_hook(note(name))
    labels = torch.zeros(batch, dtype=torch.long, device="meta")
    with torch.enable_grad():
        training_pair(twin, torch.empty(batch, *image, device="meta"), labels)
    return found
