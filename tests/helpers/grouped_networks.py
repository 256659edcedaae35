"""Members of one architecture with awkward sizes, and what they give one by one."""

import torch
from norms import lively
from torch import nn

from sparse_engine import sparsify


class Odd(nn.Module):
    """Channels that are no multiple of any block, a residual, a stride, and flattened pixels."""

    def __init__(self, flat=True):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.inner = nn.Conv2d(24, 40, 3, padding=1, bias=False)
        self.back = nn.Conv2d(40, 24, 1)
        self.pool = nn.MaxPool2d(2)
        self.flat = flat
        self.hidden = nn.Linear(24 * 4 if flat else 24, 20)
        self.classifier = nn.Linear(20, 7)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = self.pool(x + self.back(torch.relu(self.inner(x))))
        x = self.pool(x).flatten(1) if self.flat else x.mean((2, 3))
        return self.classifier(torch.relu(self.hidden(x)))


def members(make, block=(16, 16), sparsity=0.6, count=3):
    torch.manual_seed(0)
    found = [lively(make()).eval() for _ in range(count)]
    for model in found:
        if sparsity:
            sparsify(model, sparsity, "uniform", block=block, init="random")
    return found


def images(size=8, count=4):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def one_by_one(models, x):
    logits = torch.stack([model(x) for model in models])
    assert not torch.allclose(logits[0], logits[1], rtol=0.1)
    return logits


def assert_equal(got, wanted):
    assert got.shape == wanted.shape
    torch.testing.assert_close(
        got, wanted, rtol=1e-4, atol=1e-5 * wanted.detach().abs().max().item()
    )
