"""A network of a run: the model, its optimizer and its topology."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_engine.architecture import dense_model
from sparse_engine.blocks import parse_block
from sparse_engine.config import Config
from sparse_engine.convert import plan_model, skip_reasons, sparsify
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.distribution import LayerPlan
from sparse_engine.flops import model_densities
from sparse_engine.recut import carry_state, load_state, replace_modules
from sparse_engine.topology import GROW_SCORES, Topology


@dataclass
class Network:
    """What one phase hands to the next."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    topology: Topology

    def replace_layers(self, replaced: Mapping[str, nn.Module]) -> None:
        """Put other layers in place of some; optimizer state and exploration are carried over."""
        for name, layer in replaced.items():
            carry_state(self.optimizer, self.model.get_submodule(name), layer)
        replace_modules(self.model, replaced)
        self._renew_topology()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Become the network of a state dict, with no momentum; exploration is carried over."""
        load_state(self.model, state)
        (group,) = self.optimizer.param_groups
        group["params"] = list(self.model.parameters())
        self.optimizer.state.clear()
        self._renew_topology()

    def densities(self) -> dict[str, float]:
        """Return the density of every sparse layer by name."""
        return model_densities(self.model)

    def _renew_topology(self) -> None:
        old = self.topology
        state = old.state_dict()
        self.topology = Topology(self.model, self.optimizer, old.rule, old.seed)
        # A layer that was full until now has had all of its weights active.
        full = {n: torch.ones_like(mask) for n, mask in self.topology.ever_active.items()}
        self.topology.load_state_dict({**state, "ever_active": {**full, **state["ever_active"]}})


def member_seed(seed: int, member: int) -> int:
    """Return the seed of a member (counted from 0): no two of a run, or of two runs, share it."""
    return seed * 1009 + member


def build_network(
    config: Config,
    info: DatasetInfo,
    device: torch.device,
    member: int = 0,
    sparsity: float | None = None,
) -> Network:
    """Return a fresh network with seeds of its own; the blocks of a sparse one are random.

    Args:
        config: resolved.
        info: of the data set.
        device: where it will be.
        member: decides the seeds.
        sparsity: the configuration's unless said.
    """
    seed = member_seed(config.seed, member)
    torch.manual_seed(seed)
    model = dense_model(config, info)
    sparsity = config.sparsity if sparsity is None else sparsity
    if sparsity:
        generator = torch.Generator().manual_seed(seed)
        block = parse_block(config.block)
        sparsify(model, sparsity, config.distribution, block, init="random", generator=generator)
    model = model.to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    rule = config.topology if config.topology in GROW_SCORES else "static"
    return Network(model, optimizer, Topology(model, optimizer, rule, seed))


def plan_network(
    config: Config, model: nn.Module, sparsity: float | None = None
) -> list[LayerPlan]:
    """Return how build_network cuts a dense model, which may be on the meta device."""
    block = parse_block(config.block)
    skipped = skip_reasons(model)
    sparsity = config.sparsity if sparsity is None else sparsity
    return plan_model(model, sparsity or 0.0, config.distribution, block, skipped)
