"""Predict what GPU kernels reach, a tap at a time beside strips: python -m bench.dev.roofline.

    python -m bench.dev.roofline --networks wrn28-10      one network of the four

Nothing here is measured. A row of a layer has the share of the dense rate, per multiplied FLOP, of
forward, input gradient and weight gradient, and which share of these FLOPs is of stored weights. A
step is fused, captured and all on kernels, compared with a dense one that is compiled and captured.
"""

import argparse
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from bench.dev import traffic
from bench.dev.harness import print_table
from bench.dev.programs import Layer, Pass, gather, weight_grad
from bench.dev.waves import seconds
from bench.speed.networks import NETWORKS, Network
from bench.speed.roofline import RATES, Rates
from bench.speed.variant import DENSE, Case, Variant, Workload
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.layers.surgery import weight_shape
from sparse_kernels.dispatch.backend import VARIABLE

CHOICES = [(rates, sparsity) for rates in RATES.values() for sparsity in (0.8, 0.9)]
NAMES = [f"{name.split()[1]}, {sparsity:.0%}" for name in RATES for sparsity in (0.8, 0.9)]
COLUMNS = ("layer", "block", "stored", *NAMES)
FLAGS = {"networks": ["wrn28-10", "resnet18", "torchvision/resnet50", "vgg16"]}
BLOCKS = ((64, 64), (32, 32))
# Assumed: 0.6 ms for the 429 kernels of an earlier captured step of WRN-28-10.
LAUNCH = 1.4e-6
# Kernels a layer in a step: 270 for WRN-28-10's 29 (docs/performance.md), and as many if dense.
KERNELS = 270 / 29
# SGD with momentum in fp32 reads weight, gradient and momentum, and writes two of them.
OPTIMIZER_BYTES = 20


class Shape(NamedTuple):
    """A layer of a network: weight (O, C, R, S), image (H, W) of its output, stride."""

    weight: tuple[int, int, int, int]
    image: tuple[int, int]
    stride: int

    def __str__(self) -> str:
        outputs, inputs, *_ = self.weight
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{inputs} -> {outputs} at {self.image[0]}x{self.image[1]}{stride}"

    def sparse(self, block: tuple[int, int], density: float, strips: bool, batch: int) -> Layer:
        """Return it with its share of blocks, by single taps or by strips."""
        plan = LayerPlan.full("", self.weight, block, "row" if strips else "each").at(density)
        sizes = self.weight[:2], self.weight[2:], self.image, batch
        return Layer(*sizes, plan.block, plan.active, strips, self.stride)

    def dense(self, batch: int) -> Layer:
        """Return it with all its weights, as blocks of one."""
        sizes = self.weight[:2], self.weight[2:], self.image, batch
        return Layer(*sizes, (1, 1), math.prod(self.weight), stride=self.stride)


def shapes(network: Network) -> list[Shape]:
    """Return the convolutions and linear layers in the order in which an image meets them."""
    found: list[Shape] = []

    def note(module: nn.Module, _: Sequence[torch.Tensor], output: torch.Tensor) -> None:
        outputs, inputs, taps_h, taps_w = (*weight_shape(module), 1, 1)[:4]
        height, width = output.shape[2:] if output.ndim == 4 else (1, 1)
        stride = getattr(module, "stride", (1,))[0]
        found.append(Shape((outputs, inputs, taps_h, taps_w), (height, width), stride))

    model = network.build().to("meta").eval()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note)
    model(torch.empty(2, *network.image, device="meta"))
    return found


def passes(layer: Layer, fused: bool = False) -> list[Pass]:
    """Return forward, input gradient and weight gradient.

    fused: the forward pass takes statistics of its output, and the input is transformed on load.
    """
    return [gather(layer, False, fused), gather(layer, True), weight_grad(layer, fused=fused)]


class Rest(NamedTuple):
    """Bytes of a step beside its products: of the dense network compiled, of the sparse one fused.

    Compiled, ReLUs and sums are taken to cost nothing, and norms what they do eager; what fused
    products read besides their own images counts here.
    """

    dense: float
    fused: float


def rest(network: Network) -> Rest:
    """Count what a step moves beside its products."""
    os.environ |= {VARIABLE: "triton", "TRITON_INTERPRET": "1"}
    counts = []
    for variant in (DENSE, Variant("auto", rows=True), Variant("auto", rows=True, fuse=True)):
        workload = Workload(Case(network, 0.9), variant, "cpu")
        model = workload.case.model().to(memory_format=torch.channels_last)
        workload.rearrange(model)
        images = (network.batch, *network.image)
        counts.append(traffic.count_step(model, images, torch.bfloat16))
    dense, plain, fused = counts
    norms = sum(b for name, b in dense.bytes.items() if "norm" in name or "pool" in name)
    return Rest(norms, fused.total() - plain.total("multiply"))


def step(layers: Sequence[Layer], rates: Rates, moved: float) -> float:
    """Return the seconds of a step on kernels; the first layer has no input gradient.

    moved: bytes beside the products.
    """
    products = sum(
        seconds(work, rates)
        for place, layer in enumerate(layers)
        for number, work in enumerate(passes(layer, fused=True))
        if place or number != 1
    )
    return products + _beside(layers, rates, moved)


def dense_pass(layer: Layer, rates: Rates) -> float:
    """Return the seconds of one dense pass, which runs at the dense rate or reads memory."""
    return max(layer.useful / rates.tensor, layer.memory / rates.memory)


def dense_step(layers: Sequence[Layer], rates: Rates, moved: float) -> float:
    """Return the seconds of a dense step; the first layer has no input gradient."""
    times = [dense_pass(layer, rates) for layer in layers]
    return 3 * sum(times) - times[0] + _beside(layers, rates, moved)


def _beside(layers: Sequence[Layer], rates: Rates, moved: float) -> float:
    weights = sum(layer.stored for layer in layers)
    return len(layers) * KERNELS * LAUNCH + (moved + OPTIMIZER_BYTES * weights) / rates.memory


def multiplied(works: Sequence[Pass]) -> float:
    """Return the FLOPs that tensor cores multiply in some passes, with blocks that are there."""
    return sum(work.programs * work.program.flops * work.present for work in works)


def dense_shares(layers: Sequence[Layer], rates: Rates) -> list[float]:
    """Return the share of the dense rate, per multiplied FLOP, of each pass over some layers."""
    return [
        multiplied(works) / rates.tensor / sum(seconds(work, rates) for work in works)
        for works in zip(*map(passes, layers))
    ]


def stored_shares(layers: Sequence[Layer]) -> list[float]:
    """Return the share of the multiplied FLOPs that is of stored weights, of each pass."""
    useful = sum(layer.useful for layer in layers)
    return [useful / multiplied(works) for works in zip(*map(passes, layers))]


def rows(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Yield the rows of each network: its 3x3 layers, all of them together, and the whole step."""
    for name in options.networks:
        network = NETWORKS[name]
        everything, moved = shapes(network), rest(network)
        wide = [shape for shape in everything if shape.weight[2:] == (3, 3)]
        yield from dict.fromkeys(
            _row(f"{shape}", [shape], block, network.batch) for shape in wide for block in BLOCKS
        )
        for block in BLOCKS:
            short = name.split("/")[-1]
            yield _row(f"**{short}: 3x3**", wide, block, network.batch)
            yield _step_row(f"**{short}: step**", network, everything, block, moved)


def _row(name: str, shapes: Sequence[Shape], block: tuple[int, int], batch: int) -> tuple[str, ...]:
    """Return name, block, share of stored weights, and shares of the dense rate by choice."""

    def layers(sparsity: float) -> list[list[Layer]]:
        return [
            [shape.sparse(block, 1 - sparsity, strips, batch) for shape in shapes]
            for strips in (False, True)
        ]

    used = layers(0.8)[0][0].block if len(shapes) == 1 else block
    cells = [name, "x".join(map(str, used)), _pair(map(stored_shares, layers(0.8)))]
    for rates, sparsity in CHOICES:
        cells.append(_pair(dense_shares(found, rates) for found in layers(sparsity)))
    return tuple(cells)


def _pair(shares: Iterable[list[float]]) -> str:
    """Return per cents of three passes, with taps and with strips; once where they are equal."""
    texts = ["/".join(f"{100 * share:.0f}" for share in three) for three in shares]
    return " → ".join(dict.fromkeys(texts))


def _step_row(
    name: str, network: Network, shapes: Sequence[Shape], block: tuple[int, int], moved: Rest
) -> tuple[str, ...]:
    """Return how many times as fast as the dense step a step is, and the milliseconds of that."""
    cells, batch = [], network.batch
    for rates, sparsity in CHOICES:
        dense = dense_step([shape.dense(batch) for shape in shapes], rates, moved.dense)
        ratios = []
        for strips in (False, True):
            layers = [shape.sparse(block, 1 - sparsity, strips, batch) for shape in shapes]
            ratios.append(dense / step(layers, rates, moved.fused))
        cells.append(f"{' → '.join(f'{ratio:.2f}' for ratio in ratios)} of {1e3 * dense:.1f}")
    return name, "x".join(map(str, block)), "", *cells


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
