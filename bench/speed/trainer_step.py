"""The trainer's own step on random images, as a run would make it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.training.finite import FiniteGuard
from sparse_engine.training.network import Network
from sparse_engine.training.step import TrainingStep


def loss(x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over members of the mean cross-entropy."""
    mean = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten())
    return mean * logits.shape[:-2].numel()


def trainer_step(
    network: Network, config: Config, info: DatasetInfo, images: int
) -> Callable[[], None]:
    """Return a network's training step on `images` random images; on a GPU captured."""
    device = network.rate.device
    x = torch.randn(images, info.channels, info.height, info.width, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(info.classes, (images,), device=device)
    network.model.train()
    guard, graph = FiniteGuard(device, config.dtype == "fp16", 0), device.type == "cuda"
    return partial(TrainingStep(network, loss, guard, config.dtype, graph, config.compile), x, y)
