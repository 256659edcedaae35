"""Layers on a CPU: the native kernels and what else there is: python -m bench.dev.cpu_table.

    python -m bench.dev.cpu_table --networks single --densities 0.1 0.2 --threads 1 2
    python -m bench.dev.cpu_table --contenders masked native     what the cost model is fitted to

A row is a layer, a block and a density: forward and both gradients, in channels_last, as ratios to
the dense layer of times taken in turn; the ratio that cost_model.py expects, by which `auto`
chooses, and whose constants are fitted to this table; and GFLOP/s of the dense layer and of native
passes, active blocks alone counted. One thread is timed by its CPU time, which other processes
disturb little; more by the clock, on a machine that should have nothing else to do.
"""

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch

from bench.dev.harness import print_table
from bench.speed.layer_peers import PEERS
from bench.speed.problems import Layer, Passes, Problem, make_problem
from bench.speed.timing import STEP, clock_of, in_turn, quantile, ratio_text
from sparse_kernels.dispatch.cost_model import expected_ratio
from sparse_kernels.layout import clamp_block

# Network, images, pixels a side (0: a linear layer's vectors), channels in and out, kernel, stride.
LAYERS = (
    ("WRN-16-2", 128, 32, 16, 16, 3, 1),
    ("WRN-16-2", 128, 32, 32, 32, 3, 1),
    ("WRN-16-2", 128, 16, 64, 64, 3, 1),
    ("WRN-16-2", 128, 16, 64, 128, 3, 2),
    ("WRN-16-2", 128, 8, 128, 128, 3, 1),
    ("WRN-16-4", 32, 32, 64, 64, 3, 1),
    ("WRN-16-4", 32, 32, 64, 128, 3, 2),
    ("WRN-16-4", 32, 32, 64, 128, 1, 2),
    ("WRN-16-4", 32, 16, 128, 128, 3, 1),
    ("WRN-16-4", 32, 8, 256, 256, 3, 1),
    ("WRN-28-10", 8, 32, 160, 160, 3, 1),
    ("WRN-28-10", 8, 16, 320, 320, 3, 1),
    ("WRN-28-10", 8, 8, 640, 640, 3, 1),
    ("WRN-28-10", 32, 8, 640, 640, 3, 1),
    ("ResNet-18", 32, 8, 256, 256, 3, 1),
    ("ResNet-18", 32, 4, 512, 512, 3, 1),
    ("ResNet-18", 8, 4, 256, 256, 3, 1),
    ("ResNet-18", 8, 2, 512, 512, 3, 1),
    ("ResNet-50", 8, 28, 512, 128, 1, 1),
    ("ResNet-50", 8, 14, 256, 1024, 1, 1),
    ("ResNet-50", 8, 28, 512, 1024, 1, 2),
    ("MLP", 128, 0, 1024, 1024, 1, 1),
    ("transformer", 2048, 0, 512, 2048, 1, 1),
    ("single", 32, 16, 256, 256, 3, 1),
    ("single", 8, 14, 512, 512, 1, 1),
)
RIVALS = tuple(name for name in PEERS if name != "dense")
COLUMNS = (
    "layer", "threads", "block", "density", "dense ms", *RIVALS, "native / masked",
    "the same as expected", "GFLOP/s dense", "native y", "dx", "dw",
)  # fmt: skip
FLAGS = {
    "threads": [1], "rounds": 7, "dtype": ("float32", "bfloat16"),
    "networks": list(dict.fromkeys(facts[0] for facts in LAYERS)), "blocks": [1, 4, 8, 16, 32, 64],
    "densities": [0.05, 0.1, 0.2, 0.3, 0.5], "contenders": list(RIVALS),
}  # fmt: skip
NONE = "-"


def layer_of(network: str, images: int, size: int, inputs: int, outputs: int, *rest: int) -> Layer:
    """Return a row of LAYERS as a layer to time."""
    kernel, stride = rest
    name = " ".join(map(str, (network, images, size, inputs, outputs, *rest)))
    weight = (outputs, inputs, kernel, kernel) if size else (outputs, inputs)
    return Layer(name, weight, (size, size) if size else (), images, images, stride)


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each layer, number of threads, block and density, or why one cell is bare."""
    dtype, said = getattr(torch, options.dtype), set()
    chosen = [layer_of(*facts) for facts in LAYERS if facts[0] in options.networks]
    for layer, threads in itertools.product(chosen, options.threads):
        torch.set_num_threads(threads)
        torch.compiler.reset()  # it gives up on a function compiled eight times
        blocks = sorted({clamp_block((b, b), *layer.weight[:2])[1] for b in options.blocks})
        for block, density in itertools.product(blocks, options.densities):
            problem = make_problem(layer, (block, block), density, "cpu", dtype)
            passes, reasons = contenders(problem, options.contenders)
            for reason in reasons:
                if reason not in said:
                    said.add(reason)
                    yield [layer.name, f"no figure of {reason}"]
            yield [layer.name, f"{threads}", *cells(problem, passes, options.rounds)]


def contenders(problem: Problem, names: Sequence[str]) -> tuple[dict[str, Passes], list[str]]:
    """Return the passes of the dense layer and of those that can run, and why others cannot."""
    passes: dict[str, Passes] = {}
    reasons = []
    for name in ("dense", *names):
        try:
            passes[name] = PEERS[name](problem)
            for run in passes[name].values():
                run()
        except Exception as error:  # of any library
            passes.pop(name, None)
            reasons.append(f"{name}: {(str(error).strip() or repr(error)).splitlines()[0]}")
    return passes, reasons


def cells(problem: Problem, passes: Mapping[str, Passes], rounds: int) -> list[str]:
    """Return what was measured of one layer, block and density."""
    layout, times = problem.layout, in_turn(passes, rounds, clock_of("cpu"))
    dense, native, masked = (times.get(name) for name in ("dense", "native", "masked"))
    threads, gflop = torch.get_num_threads(), 2e-9 * problem.positions * problem.dense.numel()
    layer = tuple(layout.sizes()), layout.density, problem.positions
    expected = expected_ratio(problem.x.dtype, *layer, threads)
    rates = [NONE] * 3
    if native:
        rates = [f"{layout.density * gflop / quantile(native[p], 0.5):.0f}" for p in native][1:]
    return [
        f"{layout.block}",
        f"{layout.density:.2f}",
        f"{1e3 * quantile(dense[STEP], 0.5):.1f}",
        *(ratio_text(times[n][STEP], dense[STEP]) if n in times else NONE for n in RIVALS),
        ratio_text(native[STEP], masked[STEP]) if native and masked else NONE,
        f"{expected:.2f}",
        f"{3 * gflop / quantile(dense[STEP], 0.5):.0f}",
        *rates,
    ]


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
