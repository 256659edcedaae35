"""A network of a run: the model, its optimizer and its topology."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sparse_engine.blocks import parse_block
from sparse_engine.config import Config
from sparse_engine.convert import plan_model, skip_reasons, sparsify
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.distribution import LayerPlan
from sparse_engine.models.build import build_model
from sparse_engine.topology import GROW_SCORES, Topology


@dataclass
class Network:
    """What one phase hands to the next."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    topology: Topology


def member_seed(seed: int, member: int) -> int:
    """Return the seed of a member (counted from 0): no two of a run, or of two runs, share it."""
    return seed * 1009 + member


def dense_model(config: Config, info: DatasetInfo) -> nn.Module:
    """Return the model of a resolved configuration before any weight is dropped."""
    sizes = {"channels": info.channels, "height": info.height, "width": info.width}
    return build_model(config.model, classes=info.classes, dropout=config.dropout, **sizes)


def build_network(
    config: Config, info: DatasetInfo, device: torch.device, member: int = 0
) -> Network:
    """Return a fresh network with seeds of its own; the blocks of a sparse one are random."""
    seed = member_seed(config.seed, member)
    torch.manual_seed(seed)
    model = dense_model(config, info)
    if config.sparsity:
        generator = torch.Generator().manual_seed(seed)
        block = parse_block(config.block)
        sparsify(
            model,
            config.sparsity,
            config.distribution,
            block,
            init="random",
            generator=generator,
            taps=config.taps,
        )
    model = model.to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    rule = config.topology if config.topology in GROW_SCORES else "static"
    return Network(model, optimizer, Topology(model, optimizer, rule, seed))


def plan_network(config: Config, model: nn.Module) -> list[LayerPlan]:
    """Return how build_network cuts a dense model, which may be on the meta device."""
    block = parse_block(config.block)
    skipped = skip_reasons(model)
    sparsity = config.sparsity or 0.0
    return plan_model(model, sparsity, config.distribution, block, skipped, config.taps)
