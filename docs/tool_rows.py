"""What the programs of tools.py share: rows of the table, and a network that tools copy."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_engine import dense_state_dict, sparsify

X = torch.linspace(-1, 1, 4 * 16).view(4, 16)


@dataclass(frozen=True)
class Tool:
    """A row: a tool, the package it comes from, what was tried, and the program that tries it."""

    name: str
    package: str
    tried: str
    program: Callable[[], str]
    starts_processes: bool = False

    def cells(self) -> tuple[str, str, str, str]:
        """Run the program; return tool, version, what was tried and what holds."""
        try:
            version = importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return self.name, "-", self.tried, "not installed"
        try:
            holds = self.program()
        except Exception as error:
            holds = f"FAILS: {type(error).__name__}: {str(error).splitlines()[0]}"
        return self.name, f"{self.package} {version.partition('+')[0]}", self.tried, holds


TOOLS: list[Tool] = []


def tool(
    name: str, package: str, tried: str, starts_processes: bool = False
) -> Callable[[Callable[[], str]], None]:
    """Add a row; its function checks with assert, and returns what holds."""
    return lambda program: TOOLS.append(Tool(name, package, tried, program, starts_processes))


def network(seed: int) -> nn.Sequential:
    """Return two sparse layers whose random blocks are other ones for each seed."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    sparsify(model, 0.5, "uniform", (8, 8), init="random")
    return model


def tensors(model: nn.Module) -> list[Tensor]:
    """Return parameters and buffers: all that most tools see."""
    return [*model.parameters(), *model.buffers()]


def is_copy(model: nn.Module, original: nn.Module) -> bool:
    """Return whether two networks compute the same, and have the same dense weights."""
    same = torch.allclose(model(X).float(), original(X), atol=1e-6)
    pairs = zip(dense_state_dict(model).values(), dense_state_dict(original).values())
    return same and all(torch.allclose(own, other) for own, other in pairs)


def averages_as_dense(
    make: Callable[[nn.Module], nn.Module], update: Callable[[nn.Module, nn.Module], None]
) -> bool:
    """Return whether an average (decay 0.9) is that of dense weights, over steps of no update."""
    model = network(0)
    average = make(model)
    update(average, model)
    right = copy.deepcopy(dense_state_dict(model))
    with torch.no_grad():
        for _ in range(10):
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            update(average, model)
            right = {k: 0.9 * right[k] + 0.1 * v for k, v in dense_state_dict(model).items()}
    found = dense_state_dict(getattr(average, "module", average))
    return all(torch.allclose(found[key], right[key], atol=1e-5) for key in right)
