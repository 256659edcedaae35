"""Narrower dense networks: the rival that spends a sparse network's FLOPs on fewer channels."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from sparse_engine.models.workload import dense_flops

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
# Channels are multiples of what the libraries' vectors hold evenly.
MULTIPLE = 8
STEPS = 10  # halvings of the interval of scales: finer than any width shows
OF_CHANNELS = ("weight", "bias", "running_mean", "running_var")


class NotNarrowed(RuntimeError):
    """A network whose channels are written into its forward, or split into groups."""


def slim_network(model: nn.Module, image: Sequence[int], share: float) -> nn.Module:
    """Return a copy of a network in which every layer is narrower by the same factor.

    Images and classes stay. The factor is that whose FLOPs are nearest to a share.

    Args:
        model: dense.
        image: shape of one input.
        share: of its FLOPs in convolution and linear layers, above 0 and at most 1.

    Raises:
        NotNarrowed: its layers do not fit each other when they are narrower.
    """
    wanted = share * sum(dense_flops(model, image).values())
    twin = copy.deepcopy(model).to("meta")

    def flops(scale: float) -> float:
        try:
            return sum(dense_flops(_narrowed(twin, scale), image).values())
        except RuntimeError as error:
            raise NotNarrowed(f"its layers cannot be made narrower alike: {error}") from error

    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if flops(middle) < wanted else (low, middle)
    return _narrowed(model, min((low, high), key=lambda scale: abs(flops(scale) - wanted)))


def slim_channels(channels: int, scale: float) -> int:
    """Return how many of a layer's channels are left at a scale."""
    return min(channels, max(1, round(channels * scale / MULTIPLE)) * MULTIPLE)


@torch.no_grad()
def _narrowed(model: nn.Module, scale: float) -> nn.Module:
    """Return a copy of which every layer keeps its first channels."""
    model = copy.deepcopy(model)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        if getattr(layer, "groups", 1) != 1:
            raise NotNarrowed("its convolutions have groups")
        outputs, inputs = (slim_channels(n, scale) for n in layer.weight.shape[:2])
        if layer is layers[0]:
            inputs = layer.weight.shape[1]
        if layer is layers[-1]:
            outputs = layer.weight.shape[0]
        _keep(layer, lambda t, o=outputs, i=inputs: t[:o, :i] if t.ndim > 1 else t[:o])
        names = ("out_channels", "in_channels")
        if isinstance(layer, nn.Linear):
            names = ("out_features", "in_features")
        layer.__dict__.update(zip(names, (outputs, inputs)))
    for norm in (m for m in model.modules() if isinstance(m, NORMS)):
        channels = slim_channels(norm.weight.numel(), scale)
        _keep(norm, lambda t, c=channels: t[:c])
        if isinstance(norm, nn.LayerNorm):
            norm.normalized_shape = (channels,)
        else:
            norm.num_features = channels
    return model


def _keep(module: nn.Module, cut: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for name in OF_CHANNELS:
        tensor = getattr(module, name, None)
        if tensor is not None:
            kept = cut(tensor).clone()
            setattr(module, name, nn.Parameter(kept) if name in module._parameters else kept)
