"""What is compared: a network with a choice of blocks, in several variants of running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.speed.networks import Network
from bench.speed.slim import NotNarrowed, slim_network
from sparse_engine import fuse, sparsify, to_rows
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.blocks import parse_block
from sparse_engine.layers.surgery import model_densities, weight_shape
from sparse_engine.models.workload import dense_flops, forward_flops
from sparse_engine.training.cuda_graph import captured
from sparse_kernels.dispatch.backend import BACKENDS

KINDS = ("dense", "slim", "mask-multiply", *BACKENDS)


class Unavailable(RuntimeError):
    """A variant that this machine, or this kind of measurement, does not have."""


@dataclass(frozen=True)
class Variant:
    """One way to run a network, written as its kind and options, such as "auto rows captured".

    All are in channels_last; on a GPU in bf16, on a CPU in fp32 unless it is an option.

    kind: a backend of ours; "dense", the dense network; "slim", a narrower dense one of about the
        sparse one's FLOPs; or "mask-multiply", a dense one whose weights are multiplied by masks
        after each step, as public implementations of sparse training do.
    bf16: autocast to it.
    rows: activations in the order of rows, see to_rows.
    fuse: convolutions together with the norms around them, see fuse.
    grouped, vmapped: members of an ensemble as one network, ours or torch.func's.
    compiled: by torch.compile.
    captured: replayed from a CUDA graph.
    """

    kind: str
    bf16: bool = False
    rows: bool = False
    fuse: bool = False
    grouped: bool = False
    vmapped: bool = False
    compiled: bool = False
    captured: bool = False

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Understand a variant's name.

        Raises:
            InputError: it is none.
        """
        kind, *options = text.split() or [""]
        if kind not in KINDS or not set(options) <= set(OPTIONS):
            raise InputError(
                f"variant '{text}' is unknown: take one of {', '.join(KINDS)}, then any of "
                f"{', '.join(OPTIONS)}"
            )
        return cls(kind, **dict.fromkeys(options, True))

    def __str__(self) -> str:
        return " ".join([self.kind, *(name for name in OPTIONS if getattr(self, name))])

    @property
    def backend(self) -> str:
        """The backend that sparse layers are forced on."""
        return self.kind if self.kind in BACKENDS else "auto"


OPTIONS = tuple(name for name in Variant.__dataclass_fields__ if name != "kind")
DENSE = Variant("dense")


def variants(*names: str) -> tuple[Variant, ...]:
    """Return the variants of some names; InputError for what is none."""
    return tuple(map(Variant.parse, names))


@dataclass(frozen=True)
class Case:
    """One network with one choice of blocks; of sparsity 0 for the dense one.

    slim: the narrower dense network of as many FLOPs as these blocks have.
    taps: "each", or "row" for strips, as of sparsify.
    """

    network: Network
    sparsity: float = 0.0
    distribution: str = "uniform"
    block: str = "32x32"
    slim: bool = False
    taps: str = "each"

    def __str__(self) -> str:
        if not self.sparsity:
            return self.network.name
        return f"{self.network.name} {self.sparsity} {self.distribution} {self.blocks}"

    @property
    def blocks(self) -> str:
        """The block as reports call it, with its taps where they are not on their own."""
        return self.block if self.taps == "each" else f"{self.block} {self.taps}"

    def dense(self) -> Case:
        """Return the case of the dense network."""
        return Case(self.network)

    def of(self, variant: Variant) -> Case:
        """Return the case that a variant runs: the dense network has no blocks."""
        if variant.kind == "dense":
            return self.dense()
        return replace(self, slim=variant.kind == "slim")

    def model(self, seed: int = 0) -> nn.Module:
        """Return the network, its weights and blocks drawn by one seed.

        Raises:
            InputError: blocks that do not fit the network.
            Unavailable: a network that cannot be made narrower.
        """
        torch.manual_seed(seed)
        model = self.network.build()
        if self.sparsity:
            blocks, generator = parse_block(self.block), torch.Generator().manual_seed(seed)
            choice = (self.sparsity, self.distribution, blocks)
            sparsify(model, *choice, init="random", generator=generator, taps=self.taps)
        if not self.slim:
            return model
        flops = dense_flops(model, self.network.image)
        share = forward_flops(flops, model_densities(model)) / sum(flops.values())
        try:
            return slim_network(self.network.build(), self.network.image, share)
        except NotNarrowed as error:
            raise Unavailable(f"{error}") from error


class Workload:
    """A case in one variant, ready to run; `model` is the network, whatever is wrapped around it.

    A subclass says what runs: `run` takes one step of it, `phases` are its parts by name.
    """

    model: nn.Module
    members = 1
    replay: Callable[..., Any] | None = None

    def __init__(self, case: Case, variant: Variant, device: str) -> None:
        self.case, self.variant, self.device = case.of(variant), variant, device
        self.columns: dict[str, Any] = {}  # of the reports, as they become known

    def describe(self, model: nn.Module) -> None:
        """Note what the case's model promises, before it is changed in any way.

        flops: of the dense network, by layer; flops_ratio: those promised, over all of them;
        density: the share of all convolution and linear weights that is stored.
        """
        image, densities = self.case.network.image, model_densities(model)
        whole = self.case.network.build() if self.case.slim else model
        self.flops, own = dense_flops(whole, image), dense_flops(model, image)
        ratio, self.density = (
            forward_flops(parts, densities) / sum(of_whole.values())
            for parts, of_whole in (
                (own, self.flops),
                (_weights(model, own), _weights(whole, self.flops)),
            )
        )
        self.flops_ratio = self.members * ratio

    def rearrange(self, model: nn.Module) -> None:
        """Apply the options that change a model in place."""
        if self.variant.rows:
            to_rows(model)
        if self.variant.fuse:
            fuse(model)

    def record(self, function: Callable[..., Any], *inputs: Tensor) -> None:
        """Record a function in a CUDA graph, which `replay` then replays.

        Raises:
            Unavailable: there is no GPU.
        """
        if self.device != "cuda":
            raise Unavailable("only what runs on a CUDA GPU can be captured")
        replay = captured(function, *inputs)
        replay(*inputs)  # the first call records
        self.replay = replay

    @property
    def bf16(self) -> bool:
        """Whether it multiplies in bf16."""
        return self.variant.bf16 or self.device == "cuda"

    @property
    def dtype(self) -> str:
        """The data type of its products, as reports call it."""
        return "bf16" if self.bf16 else "fp32"

    def kernel_share(self) -> float | None:
        """Return the share of sparse FLOPs on triton or native; None without sparse layers."""
        layers = {n: m for n, m in self.model.named_modules() if isinstance(m, SparseLayer)}
        if not layers:
            return None
        flops = {n: self.flops[n] * m.density for n, m in layers.items()}
        ours = [n for n, m in layers.items() if (m.ran_on or "").startswith(("triton", "native"))]
        return sum(flops[n] for n in ours) / sum(flops.values())


def _weights(model: nn.Module, layers: Iterable[str]) -> dict[str, int]:
    """Return how many weights some layers would have, were they dense."""
    return {name: math.prod(weight_shape(model.get_submodule(name))) for name in layers}
