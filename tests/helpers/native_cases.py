"""Layers for the native kernels, and a step of them."""

import torch

from sparse_kernels import BlockLayout

LAYER = (64, 48, 3, 3)


def make(shape=LAYER, block=(16, 16), density=0.3, dtype=torch.float32):
    whole = BlockLayout(shape, block, torch.arange(1))
    ids = torch.randperm(whole.total)[: max(1, round(density * whole.total))]
    layout = BlockLayout(shape, block, ids)
    values = torch.randn(layout.slots, *reversed(layout.block), dtype=dtype)
    return values.requires_grad_(), layout


def step(operator, x, values, layout, **geometry):
    """Return output and both gradients; the gradient of the output has the same numbers always."""
    x = x.detach().requires_grad_()
    y = operator(x, values, layout, **geometry)
    grad = torch.empty_like(y)
    grad.copy_(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    return [y, *torch.autograd.grad(y, (x, values), grad)]
