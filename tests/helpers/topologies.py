"""Small sparse networks whose topology is updated, and what their updates are compared with."""

import torch
import torch.nn.functional as F
from torch import nn

from sparse_engine import sparsify
from sparse_engine.layers.base import SparseLayer
from sparse_engine.sparsity.layer_budgets import kept

BLOCKS = [(4, 4), (5, 3), (1, 1)]


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, 0.1, 0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
    "adamw": torch.optim.AdamW,
}


def network(block=(4, 4), sparsity: float = 0.6, seed: int = 0, taps: str = "each") -> nn.Module:
    """Return a small sparse network with convolutions, a linear layer and ragged blocks."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 13, (3, 2), stride=2),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(52, 10),
    ).double()
    sparsify(model, sparsity, "uniform", block, init="random", taps=taps)
    return model


def backward(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    F.cross_entropy(model(x), torch.arange(6)).backward()


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    optimizer.zero_grad()
    backward(model, seed)
    optimizer.step()


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}


def block_ids(model: nn.Module) -> list[torch.Tensor]:
    return [layer.layout.block_ids.clone() for layer in sparse_layers(model).values()]


def weakest_slots(layout, strength: list[float], rate: float) -> list[int]:
    """Return the slots that an update drops: the weakest of each kind of block."""
    kinds = layout.kinds.of_groups(layout.group_ids).tolist()
    found = []
    for kind, stay in enumerate(kept(layout.groups_by_kind, rate)):
        own = sorted((z for z in range(len(kinds)) if kinds[z] == kind), key=lambda z: strength[z])
        found += own[: len(own) - stay]
    return found


def best_groups(layout, scores: list[float], taken: set[int], dropped: list[int]) -> set[int]:
    """Return the best groups that are not taken, as many of each kind as those dropped."""
    kinds = layout.kinds.of_groups(torch.arange(len(scores))).tolist()
    found = set()
    for kind in set(kinds):
        free = [g for g in range(len(scores)) if kinds[g] == kind and g not in taken]
        count = sum(kinds[g] == kind for g in dropped)
        found |= set(sorted(free, key=lambda g: -scores[g])[:count])
    return found


def naive_norms(dense: torch.Tensor, block: tuple[int, int]) -> list[float]:
    """Return the L1 norm of each block of a weight [O, C, R, S] or [O, C], in the order of ids."""
    dense = dense.reshape(*dense.shape[:2], *(dense.shape[2:] or (1, 1)))
    out_channels, in_channels, taps_h, taps_w = dense.shape
    bo, bc = block
    return [
        dense[o : o + bo, c : c + bc, r, s].abs().sum().item()
        for o in range(0, out_channels, bo)
        for c in range(0, in_channels, bc)
        for r in range(taps_h)
        for s in range(taps_w)
    ]
