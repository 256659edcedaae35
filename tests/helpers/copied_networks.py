"""A small network of sparse layers that tools copy, and whether a copy is one."""

import copy

import torch
from torch import nn

from sparse_engine import dense_state_dict, densify, sparsify

X = torch.linspace(-1, 1, 4 * 16 * 9).view(4, 16, 3, 3)


def network(seed):
    """Return a network with random blocks, other ones for each seed."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 9, 32), nn.ReLU(), nn.Linear(32, 8),
    )  # fmt: skip
    sparsify(model, 0.5, "uniform", (8, 8), init="random")
    return model.eval()


def tensors(model):
    return [*model.parameters(), *model.buffers()]


def copy_over(model, original):
    """Copy as tools do that know nothing of layers."""
    for own, other in zip(tensors(model), tensors(original)):
        own.data.copy_(other)


def assert_same(model, original):
    """Outputs and weights are equal, and so are those of the dense twin made of the copy."""
    wanted = original(X)
    torch.testing.assert_close(model(X), wanted)
    torch.testing.assert_close(dense_state_dict(model), dense_state_dict(original))
    torch.testing.assert_close(densify(copy.deepcopy(model))(X), wanted, rtol=1e-4, atol=1e-5)
