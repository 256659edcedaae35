"""Attacks within a box of +-epsilon around each pixel, and accuracy under them.

FGSM: Goodfellow et al. 2015. PGD: Madry et al. 2018. Pixels lie in [0, 1] before normalisation.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_engine.data.loader import seeded_generator
from sparse_engine.errors import InputError
from sparse_engine.evaluation.robustness.pixel_model import PixelModel

# Steps together may cross the box and come back, whatever their number.
_STEPS_REACH = 2.5


class EnsembleLogits(nn.Module):
    """The ensemble as one model: its logits are the logarithms of the mean probabilities."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [N, C, H, W] to log-probabilities [N, K], exact where these underflow."""
        logs = torch.stack([member(pixels).log_softmax(1) for member in self.members])
        return logs.logsumexp(0) - math.log(len(self.members))


def fgsm(model: nn.Module, pixels: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Return pixels [N, C, H, W] moved by epsilon up the loss, by its gradient's sign alone."""
    step = epsilon * _gradient_sign(model, pixels, labels)
    return _into_box(pixels + step, pixels, epsilon)


def pgd(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Return pixels after `steps` smaller steps from a random place in the box.

    A step is 2.5 epsilon / steps long. The place is drawn from `generator`, on the CPU.
    """
    start = epsilon * (2 * torch.rand(pixels.shape, generator=generator) - 1)
    moved = _into_box(pixels + start.to(pixels.device), pixels, epsilon)
    for _ in range(steps):
        step = _STEPS_REACH * epsilon / steps * _gradient_sign(model, moved, labels)
        moved = _into_box(moved + step, pixels, epsilon)
    return moved


def robust_accuracy(
    members: Sequence[PixelModel],
    stream: Iterable[tuple[Tensor, Tensor]],
    attack: str,
    epsilon: float,
    steps: int,
) -> dict[str, Any]:
    """Return accuracies under an attack by every source: each member, and the ensemble.

    Args:
        members: the models that are attacked.
        stream: the batches of pixels and labels.
        attack: "fgsm" or "pgd".
        epsilon: the radius of the box, in pixels from 0 to 1.
        steps: the number of steps of PGD.

    Returns:
        `matrix`, a row for each source and a column for each target (members, then the ensemble;
        a single member is its own ensemble); `targets`, the min, mean and max over sources of
        each, the ensemble last; `images`, how many there were.

    Raises:
        InputError: no batches.
    """
    sources = [*members, EnsembleLogits(members)] if len(members) > 1 else list(members)
    correct, count = torch.zeros(len(sources), len(sources), dtype=torch.float64), 0
    for number, (pixels, labels) in enumerate(stream):
        pixels, labels = (part.to(members[0].device) for part in (pixels, labels))
        for row, source in enumerate(sources):
            if attack == "fgsm":
                moved = fgsm(source, pixels, labels, epsilon)
            else:
                generator = seeded_generator(number, row)
                moved = pgd(source, pixels, labels, epsilon, steps, generator)
            correct[row] += _count_correct(members, moved, labels)
        count += len(labels)
    if not count:
        raise InputError("an attack needs at least one batch of images; found none")
    matrix = correct / count
    summaries = (torch.min, torch.mean, torch.max)
    targets = [{f.__name__: f(column).item() for f in summaries} for column in matrix.T]
    return {"images": count, "targets": targets, "matrix": matrix.tolist()}


@torch.no_grad()
def _count_correct(members: Sequence[PixelModel], pixels: Tensor, labels: Tensor) -> Tensor:
    """Return how many images each member, and last the ensemble, puts in the right class."""
    predictions = torch.stack([member(pixels).softmax(1) for member in members])
    if len(members) > 1:
        predictions = torch.cat([predictions, predictions.mean(0, keepdim=True)])
    return (predictions.argmax(2) == labels).sum(1).cpu()


def _gradient_sign(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    pixels = pixels.detach().requires_grad_()
    loss = F.cross_entropy(model(pixels), labels, reduction="sum")
    if not loss.requires_grad:
        return torch.zeros_like(pixels)
    return torch.autograd.grad(loss, pixels)[0].sign()


def _into_box(moved: Tensor, pixels: Tensor, epsilon: float) -> Tensor:
    return moved.clamp(pixels - epsilon, pixels + epsilon).clamp(0, 1).detach()
