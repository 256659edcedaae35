"""A network that is exported, and images for it."""

import torch

from sparse_engine import sparsify
from sparse_engine.models.build import build_model

SIZES = {"classes": 10, "channels": 1, "height": 8, "width": 8}


def network(sparsity=0.7, **options):
    """Return a small network, sparse unless `sparsity` is 0, in eval mode."""
    torch.manual_seed(0)
    model = build_model("wrn10-1", **SIZES)
    if sparsity:
        sparsify(model, sparsity, block=(16, 16), init="random", **options)
    return model.eval()


def images(count=3):
    """Return images as the digits are."""
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
