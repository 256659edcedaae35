"""What is compared: a network with a choice of blocks, and one way to run it.

A contender's name is its description: how its layers run, then options, such as
"auto rows captured". `dense` is the dense network; `mask-multiply` a dense one whose weights are
multiplied by masks after each step, as public implementations of sparse training do; `auto`,
`triton`, `gemm` and `masked` are our backends. All are in channels_last, in bf16 on a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.speed.networks import Network
from sparse_engine import sparsify, to_rows
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.blocks import parse_block
from sparse_engine.layers.surgery import model_densities
from sparse_engine.models.workload import dense_flops, forward_flops
from sparse_kernels.dispatch.backend import BACKENDS

KINDS = ("dense", "mask-multiply", *BACKENDS)
OPTIONS = ("rows", "fuse", "compiled", "captured")


class Unavailable(RuntimeError):
    """A contender that this version or machine does not have."""


@dataclass(frozen=True)
class Case:
    """One network with one choice of blocks; of sparsity 0 for the dense one."""

    network: Network
    sparsity: float = 0.0
    distribution: str = "uniform"
    block: str = "32x32"

    def __str__(self) -> str:
        if not self.sparsity:
            return self.network.name
        return f"{self.network.name} {self.sparsity} {self.distribution} {self.block}"

    def dense(self) -> Case:
        """Return the case of the dense network."""
        return Case(self.network)

    def model(self, seed: int = 0) -> nn.Module:
        """Return the network, its weights and blocks drawn by one seed.

        Raises:
            InputError: blocks that do not fit the network.
        """
        torch.manual_seed(seed)
        model = self.network.build()
        if self.sparsity:
            sparsify(
                model,
                self.sparsity,
                self.distribution,
                parse_block(self.block),
                init="random",
                generator=torch.Generator().manual_seed(seed),
            )
        return model


class Contender:
    """A case and how it runs; `model` is the network, whatever is wrapped around it."""

    model: nn.Module
    members = 1
    known_options = OPTIONS
    replay: Callable[..., Any] | None = None

    def __init__(self, case: Case, name: str, device: str) -> None:
        """Understand the name.

        Raises:
            Unavailable: it is no contender.
        """
        self.kind, *self.options = name.split()
        if self.kind not in KINDS or not set(self.options) <= set(self.known_options):
            raise Unavailable(f"contender '{name}' is unknown")
        self.case = case.dense() if self.kind == "dense" else case
        self.name, self.device = name, device
        self.backend = self.kind if self.kind in BACKENDS else "auto"

    def describe(self, model: nn.Module) -> None:
        """Note the FLOPs and densities of the case's model, before it is changed in any way."""
        self.flops = dense_flops(model, self.case.network.image)
        self.densities = model_densities(model)
        layers = dict(model.named_modules())
        self.sizes = {
            name: layers[name].dense_weight().numel()
            if name in self.densities
            else layers[name].weight.numel()
            for name in self.flops
        }

    def rearrange(self, model: nn.Module) -> None:
        """Apply the options that change a model in place."""
        if "rows" in self.options:
            to_rows(model)
        if "fuse" in self.options:
            feature("sparse_engine", "fuse")(model)

    def capture(self, function: Callable[..., Any], *inputs: torch.Tensor) -> None:
        """Record a function in a CUDA graph.

        Raises:
            Unavailable: there is no GPU, or no sparse_engine.training.cuda_graph.
        """
        if self.device != "cuda":
            raise Unavailable("only what runs on a CUDA GPU can be captured")
        replay = feature("sparse_engine.training.cuda_graph", "captured")(function, *inputs)
        replay(*inputs)  # the first call records
        self.replay = replay

    def flops_ratio(self) -> float:
        """Return the FLOPs promised, of the dense network's."""
        ratio = forward_flops(self.flops, self.densities) / sum(self.flops.values())
        return self.members * ratio

    def density(self) -> float:
        """Return the share of all convolution and linear weights that is stored."""
        return forward_flops(self.sizes, self.densities) / sum(self.sizes.values())

    def kernel_share(self) -> float | None:
        """Return the share of sparse FLOPs on triton or gemm; None without sparse layers."""
        layers = {n: m for n, m in self.model.named_modules() if isinstance(m, SparseLayer)}
        if not layers:
            return None
        flops = {n: self.flops[n] * m.density for n, m in layers.items()}
        ours = [n for n, m in layers.items() if (m.ran_on or "").startswith(("triton", "gemm"))]
        return sum(flops[n] for n in ours) / sum(flops.values())


def feature(module: str, name: str) -> Any:
    """Return a function that other versions may lack.

    Raises:
        Unavailable: it is not there.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise Unavailable(f"{module}.{name} is not there") from None
