"""Native kernels beside the masked path and the dense layer: python -m bench.dev.cpu_table.

A row is a layer, a block and a density: forward and both gradients, in channels_last, as ratios of
times taken in turn, and the ratio that backend.py expects, by which `auto` chooses. Its constants
are fitted to this table. One thread is timed by its CPU time, which other processes disturb
little; with --threads of more, by the clock, on a machine that should have nothing else to do.
"""

import argparse
import itertools
from collections.abc import Iterator

import torch

from bench.dev.harness import print_table
from bench.speed.problems import Layer, dense_passes, make_problem, sparse_passes
from bench.speed.timing import STEP, clock_of, in_turn, quantile, ratio_text
from sparse_kernels.dispatch.cost_model import masked_ratio, native_ratio
from sparse_kernels.layout import clamp_block

# Network, images, pixels a side (0: a linear layer's vectors), channels in and out, kernel, stride.
LAYERS = (
    ("WRN-16-2", 128, 32, 16, 16, 3, 1),
    ("WRN-16-2", 128, 32, 32, 32, 3, 1),
    ("WRN-16-2", 128, 16, 64, 64, 3, 1),
    ("WRN-16-2", 128, 16, 64, 128, 3, 2),
    ("WRN-16-2", 128, 8, 128, 128, 3, 1),
    ("WRN-28-10", 8, 32, 160, 160, 3, 1),
    ("WRN-28-10", 8, 16, 320, 320, 3, 1),
    ("WRN-28-10", 8, 8, 640, 640, 3, 1),
    ("WRN-28-10", 32, 8, 640, 640, 3, 1),
    ("ResNet-18", 32, 8, 256, 256, 3, 1),
    ("ResNet-18", 32, 4, 512, 512, 3, 1),
    ("ResNet-50", 8, 28, 512, 128, 1, 1),
    ("ResNet-50", 8, 14, 256, 1024, 1, 1),
    ("ResNet-50", 8, 28, 512, 1024, 1, 2),
    ("MLP", 128, 0, 1024, 1024, 1, 1),
    ("transformer", 2048, 0, 512, 2048, 1, 1),
)
COLUMNS = (
    "layer", "block", "density", "dense ms", "masked / dense", "native / dense", "native / masked",
    "the same as expected",
)  # fmt: skip
FLAGS = {
    "threads": 1, "rounds": 7, "dtype": ("float32", "bfloat16"),
    "networks": list(dict.fromkeys(facts[0] for facts in LAYERS)), "blocks": [1, 4, 8, 16, 32, 64],
    "densities": [0.05, 0.1, 0.2, 0.3, 0.5],
}  # fmt: skip


def layer_of(network: str, images: int, size: int, inputs: int, outputs: int, *rest: int) -> Layer:
    """Return a row of LAYERS as a layer to time."""
    kernel, stride = rest
    name = " ".join(map(str, (network, images, size, inputs, outputs, *rest)))
    weight = (outputs, inputs, kernel, kernel) if size else (outputs, inputs)
    return Layer(name, weight, (size, size) if size else (), images, images, stride)


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each layer, block and density."""
    for layer in (layer_of(*facts) for facts in LAYERS if facts[0] in options.networks):
        blocks = sorted({clamp_block((b, b), *layer.weight[:2])[1] for b in options.blocks})
        for block, density in itertools.product(blocks, options.densities):
            dtype = getattr(torch, options.dtype)
            problem = make_problem(layer, (block, block), density, "cpu", dtype)
            layout = problem.layout
            passes = {
                "dense": dense_passes(problem),
                "masked": sparse_passes(problem, "channels_last", "masked"),
                "native": sparse_passes(problem, "channels_last", "native"),
            }
            times = in_turn(passes, options.rounds, clock_of("cpu"))
            dense, masked, native = (times[name][STEP] for name in passes)
            expected = native_ratio(tuple(layout.sizes()), layout.density, problem.positions)
            expected /= masked_ratio(problem.positions)
            yield [
                layer.name,
                f"{layout.block}",
                f"{layout.density:.2f}",
                f"{1e3 * quantile(dense, 0.5):.1f}",
                ratio_text(masked, dense),
                ratio_text(native, dense),
                ratio_text(native, masked),
                f"{expected:.2f}",
            ]


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
