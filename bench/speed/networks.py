"""The networks whose steps are timed: name, image, batch on a GPU and on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from sparse_engine.models.build import build_model
from sparse_engine.models.catalog import check_name


class TransformerLayer(nn.Module):
    """One layer of a vision transformer or, causal, of GPT-2, and a classifier of its mean token.

    Pre-norm, GELU, four times as wide inside (Dosovitskiy et al. 2021, section 3.1). Queries, keys
    and values come from one linear layer of its own, so that every product is a layer.
    """

    def __init__(self, width: int, heads: int, classes: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [N, T, width] to logits [N, classes]."""
        heads = self.attention_in(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.attention_out(mixed.transpose(1, 2).flatten(2))
        x = x + self.outer(F.gelu(self.inner(self.norm2(x))))
        return self.classifier(x.mean(1))


def vit_small() -> nn.Module:
    """Return ViT-S/16 for images of 224 pixels: 12 layers, 6 heads, 384 wide, ten classes."""
    return VisionTransformer(224, 16, 12, 6, 384, 1536, num_classes=10)


def wide_mlp(width: int) -> nn.Module:
    """Return three linear layers with ReLU between them, `width` wide, and ten classes."""
    return nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


@dataclass(frozen=True)
class Network:
    """A network and its input: one image's shape, and images of a step."""

    name: str
    image: tuple[int, ...]
    batch: int
    cpu_batch: int
    make: Callable[[], nn.Module] | None = None

    def build(self) -> nn.Module:
        """Return the network with random weights, ten classes."""
        if self.make:
            return self.make()
        channels, height, width = self.image
        return build_model(self.name, classes=10, channels=channels, height=height, width=width)

    def inputs(self, device: str) -> tuple[Tensor, Tensor]:
        """Return inputs drawn by one seed, channels_last where they are images, and labels."""
        torch.manual_seed(1)
        x = torch.randn(self.batch, *self.image, device=device)
        if x.ndim == 4:
            x = x.to(memory_format=torch.channels_last)
        return x, torch.randint(10, (self.batch,), device=device)

    def on(self, device: str) -> Network:
        """Return the network with the batch of a device."""
        return self if device == "cuda" else replace(self, batch=self.cpu_batch)


NETWORKS = {
    network.name: network
    for network in (
        Network("wrn28-10", (3, 32, 32), 128, 8),
        Network("wrn16-8", (3, 32, 32), 128, 32),
        Network("resnet18", (3, 32, 32), 128, 32),
        Network("vgg16", (3, 32, 32), 128, 32),
        Network("torchvision/resnet50", (3, 224, 224), 128, 2),
        Network("mlp-4096", (4096,), 8192, 128, lambda: wide_mlp(4096)),
        Network("vit-layer", (197, 768), 128, 4, lambda: TransformerLayer(768, 12, 10)),
        Network("vit-s", (3, 224, 224), 128, 4, vit_small),
        Network("gpt2-block", (256, 768), 32, 4, lambda: TransformerLayer(768, 12, 10, True)),
    )
}
TINY = Network("wrn10-2", (3, 8, 8), 4, 4)


def network_of(name: str) -> Network:
    """Return the network of a name; another model of the trainer takes images as CIFAR's.

    Raises:
        InputError: it is no model.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    check_name(name)
    return Network(name, (3, 32, 32), 128, 32)
