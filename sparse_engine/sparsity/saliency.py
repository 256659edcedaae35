"""Which weights matter before training: scores of single weights from a few batches.

Give them to sparsify(model, sparsity, init=scores): a block's score is the sum over its weights,
and the blocks with the highest scores of the whole network stay, so that the scores choose the
layers' densities too. A block counts by its score for each weight, which is the sum where all
blocks have one size; with 1x1 blocks it is the criterion of the papers.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_engine.errors import InputError
from sparse_engine.layers.candidates import dense_layers
from sparse_engine.layers.surgery import separate_projections
from sparse_engine.models.members import training_pair

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
# As many images as GraSP's code takes.
IMAGES_PER_CLASS = 10


def snip_scores(
    model: nn.Module, batches: Iterable[Batch], loss: Loss = F.cross_entropy
) -> dict[str, Tensor]:
    """Return |g * w|, where g is the gradient of the mean loss (SNIP, Lee et al. 2019, eq. 5).

    Args:
        model: dense; a copy of it is run in training mode, and the model stays as it is.
        batches: images and labels, on the device to compute on.
        loss: of outputs and labels.

    Returns:
        A tensor of the weight's shape and device for every nn.Conv2d and nn.Linear, by name.

    Raises:
        InputError: no batches.
    """
    model, batches = _scored_copy(model, batches)
    weights = _weights(model)
    with _random_state_kept(batches):
        gradients = _mean_gradients(model, batches, loss, weights)
    return {n: (g * w.detach()).abs() for (n, w), g in zip(weights.items(), gradients)}


def grasp_scores(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss = F.cross_entropy,
    temperature: float = 200.0,
) -> dict[str, Tensor]:
    """Return w * Hg: how much the gradient's norm would fall without a weight, to first order.

    GraSP, Wang et al. 2020, eq. 8, with the sign turned: it removes the weights with the highest
    -w * Hg, so those with the highest w * Hg stay. Signs matter, and cancel within a block.

    Args:
        model, batches, loss: as in snip_scores; the model must be twice differentiable.
        temperature: outputs are divided by it; 200 in the authors' code.
    """
    model, batches = _scored_copy(model, batches)
    weights = _weights(model)

    def cooled(outputs: Tensor, labels: Tensor) -> Tensor:
        return loss(outputs / temperature, labels)

    with _random_state_kept(batches):
        first = _mean_gradients(model, batches, cooled, weights)
        products = [torch.zeros_like(w) for w in weights.values()]
        for batch in batches:
            gradients = _gradients(model, batch, cooled, weights, create_graph=True)
            flow = sum((g * f).sum() for g, f in zip(gradients, first) if g is not None)
            again = torch.autograd.grad(flow, list(weights.values()), allow_unused=True)
            _add(products, again, 1 / len(batches))
    return {n: w.detach() * p for (n, w), p in zip(weights.items(), products)}


SCORES = {"snip": snip_scores, "grasp": grasp_scores}


def saliency_batches(start: str, loader: Any, classes: int) -> list[Batch]:
    """Return the batches that a start needs: a loader's first, ten images a class; none if random.

    Args:
        start: "random", "snip" or "grasp".
        loader: with `batch(step)` and `batch_size`.
        classes: of the data set.
    """
    if start not in SCORES:
        return []
    count = math.ceil(IMAGES_PER_CLASS * classes / loader.batch_size)
    return [loader.batch(step) for step in range(count)]


def _scored_copy(model: nn.Module, batches: Iterable[Batch]) -> tuple[nn.Module, Sequence[Batch]]:
    batches = list(batches)
    if not batches:
        raise InputError("scores need at least one batch of images and labels; found none")
    twin = copy.deepcopy(model).to(batches[0][0].device).train()
    separate_projections(twin)  # as sparsify does
    return twin.requires_grad_(), batches


def _weights(model: nn.Module) -> dict[str, Tensor]:
    layers = dict(dense_layers(model))
    return {name: m.weight for name, m in layers.items() if "weight" in m._parameters}


def _random_state_kept(batches: Sequence[Batch]) -> Any:
    device = batches[0][0].device
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _mean_gradients(
    model: nn.Module, batches: Sequence[Batch], loss: Loss, weights: dict[str, Tensor]
) -> list[Tensor]:
    total = [torch.zeros_like(w) for w in weights.values()]
    for batch in batches:
        _add(total, _gradients(model, batch, loss, weights), 1 / len(batches))
    return total


def _gradients(
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    weights: dict[str, Tensor],
    create_graph: bool = False,
) -> Sequence[Tensor | None]:
    outputs, labels = training_pair(model, *batch)
    if hasattr(model, "training_pair"):
        outputs, labels = outputs.flatten(0, -2), labels.flatten()
    return torch.autograd.grad(
        loss(outputs, labels), list(weights.values()), create_graph=create_graph, allow_unused=True
    )


def _add(totals: list[Tensor], parts: Sequence[Tensor | None], share: float) -> None:
    for total, part in zip(totals, parts):
        if part is not None:
            total.add_(part.detach(), alpha=share)
