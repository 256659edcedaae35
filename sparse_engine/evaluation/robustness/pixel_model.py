"""Tickets as models of pixels, which every evaluation that makes its own images needs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparse_engine.config.config import Dtype
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.data.splits import Split, batches
from sparse_engine.device import autocast
from sparse_engine.errors import InputError
from sparse_engine.runs.tickets import Ticket

Batches = Iterator[tuple[Tensor, Tensor]]


class PixelModel(nn.Module):
    """A ticket in evaluation mode that normalises its images itself; its weights are frozen."""

    def __init__(self, model: nn.Module, info: DatasetInfo, dtype: Dtype = "fp32") -> None:
        """Wrap `model`, trained with --dtype `dtype` on images normalised as `info` says."""
        super().__init__()
        self.model = model
        self.dtype = dtype
        for name, values in (("mean", info.mean), ("std", info.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.mean.device

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [N, C, H, W] in [0, 1] to logits float32 [N, K]."""
        x = (pixels - self.mean) / self.std
        x = x.to(memory_format=torch.channels_last)
        with autocast(x.device, self.dtype):
            logits = self.model(x)
        return logits.float()


def pixel_models(tickets: Iterable[Ticket], device: torch.device) -> list[PixelModel]:
    """Return every member of every ticket, on `device`.

    Raises:
        InputError: a ticket cannot be read, or does not fit the configuration of its run.
    """
    return [
        PixelModel(member, ticket.info, ticket.config.dtype).to(device)
        for ticket in tickets
        for member in ticket.members(device)
    ]


def pixel_batches(split: Split, info: DatasetInfo, batch_size: int, workers: int = 0) -> Batches:
    """Yield a split's images in order as pixels [B, C, H, W] in [0, 1], and labels, on the CPU."""
    channels = len(info.mean)
    unchanged = replace(info, mean=(0.0,) * channels, std=(1.0,) * channels)
    return batches(split, unchanged, batch_size, torch.device("cpu"), workers)


@torch.no_grad()
def predict_logits(
    members: Sequence[PixelModel], stream: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return logits [M, N, K] and labels [N], on the CPU; each batch is made once for all.

    Raises:
        InputError: no batches.
    """
    logits, labels = [], []
    for pixels, y in stream:
        pixels = pixels.to(members[0].device, non_blocking=True)
        logits.append(torch.stack([member(pixels).cpu() for member in members]))
        labels.append(y.cpu())
    if not logits:
        raise InputError("predictions need at least one batch of images; found none")
    return torch.cat(logits, 1), torch.cat(labels)
