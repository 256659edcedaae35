"""A user's program of mistakes, for `make types`; test_types.py runs them, and each is refused.

pyright tells of a line that it has nothing to ignore in: each of them has to be a type error.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Callable

import torch
from torch import nn

from sparse_engine import (
    DynamicSparsity,
    GroupedMembers,
    GroupTopology,
    SparseConv2d,
    SparseLinear,
    TicketEnsemble,
    sparsify,
)
from sparse_engine.integrations.trainer_topology import TrainerTopology
from sparse_engine.layers.other_kinds import SparseConv1d
from sparse_engine.sparsity.distribution import Sparsity
from sparse_kernels import BlockLayout, block_conv2d

SHAPES = {"0": (64, 64, 3, 3)}


def network() -> nn.Sequential:
    """Return a network with a layer that can be sparse."""
    return nn.Sequential(nn.Linear(32, 32))


def sparse() -> tuple[nn.Module, torch.optim.SGD]:
    """Return a sparse network and its optimizer."""
    model = network()
    sparsify(model, 0.5, block=(8, 8))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def grouped() -> tuple[GroupedMembers, torch.optim.SGD]:
    """Return sparse networks as one, and its optimizer."""
    members = GroupedMembers([sparse()[0] for _ in range(2)])
    return members, torch.optim.SGD(members.parameters(), lr=0.1)


def layout() -> BlockLayout:
    """Return the layout of a layer of one block."""
    return BlockLayout((16, 16, 1, 1), (16, 16), torch.tensor([0]))


TYPOS: dict[str, Callable[[], object]] = {
    "unifrom": lambda: sparsify(network(), distribution="unifrom"),  # pyright: ignore[reportArgumentType]
    "magnitudes": lambda: sparsify(network(), init="magnitudes"),  # pyright: ignore[reportArgumentType]
    "rows": lambda: sparsify(network(), taps="rows"),  # pyright: ignore[reportArgumentType]
    "ekr": lambda: Sparsity(0.8, "ekr").plans(SHAPES),  # pyright: ignore[reportArgumentType]
    "al": lambda: Sparsity(0.8, taps="al").plans(SHAPES),  # pyright: ignore[reportArgumentType]
    "rigle": lambda: DynamicSparsity(*sparse(), "rigle"),  # pyright: ignore[reportArgumentType]
    "cosin": lambda: DynamicSparsity(*sparse(), schedule="cosin"),  # pyright: ignore[reportArgumentType]
    "granit": lambda: TrainerTopology(rule="granit").begin(*sparse(), 1000),  # pyright: ignore[reportArgumentType]
    "ste": lambda: GroupTopology(*grouped(), rule="ste", seeds=[0, 1]),  # pyright: ignore[reportArgumentType]
    "eech": lambda: SparseConv2d(16, 16, 3, taps="eech"),  # pyright: ignore[reportArgumentType]
    "smae": lambda: SparseConv2d(16, 16, 3, padding="smae"),  # pyright: ignore[reportArgumentType]
    "zero": lambda: SparseConv1d(16, 16, 3, padding_mode="zero"),  # pyright: ignore[reportArgumentType]
    "every": lambda: SparseConv2d.from_dense(nn.Conv2d(16, 16, 3), taps="every"),  # pyright: ignore[reportArgumentType]
    "raw": lambda: BlockLayout((16, 16, 1, 1), (16, 16), torch.tensor([0]), taps="raw"),  # pyright: ignore[reportArgumentType]
    "sma": lambda: block_conv2d(
        torch.ones(1, 16, 3, 3),
        torch.ones(1, 16, 16),
        layout(),
        padding="sma",  # pyright: ignore[reportArgumentType]
    ),
}


def callbacks() -> None:
    """Name rules to other people's trainers, which may not be installed; this is not run."""
    from sparse_engine.integrations import lightning, transformers

    lightning.DynamicSparsityCallback(rule="riggle")  # pyright: ignore[reportArgumentType]
    transformers.DynamicSparsityCallback(schedule="cos")  # pyright: ignore[reportArgumentType]


def results_are_tensors() -> None:
    """Take what modules return for something else; this is not run."""
    ensemble, x = TicketEnsemble([network()]), torch.ones(1, 32)
    of_ensemble: str = ensemble(x)  # pyright: ignore[reportAssignmentType]
    of_members: str = ensemble.member_probabilities(x)  # pyright: ignore[reportAssignmentType]
    of_layer: str = SparseLinear(32, 32)(x)  # pyright: ignore[reportAssignmentType]
    of_convolution: str = SparseConv2d(16, 16, 1)(torch.ones(1, 16, 1, 1))  # pyright: ignore[reportAssignmentType]
    of_group: str = grouped()[0](x)  # pyright: ignore[reportAssignmentType]
    print(of_ensemble, of_members, of_layer, of_convolution, of_group)
    ensemble("an image")  # pyright: ignore[reportArgumentType]
