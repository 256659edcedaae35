"""What a step costs for looking at block ids in every forward: `python -m bench.dev.look_cost`.

Steps without an update, with the look and without, taken in turn; the goal is a ratio of at most
1.02. Clocks are as in cpu_table.py.
"""

import argparse
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from bench.dev.harness import print_table
from bench.speed.networks import NETWORKS, Network, wide_mlp
from bench.speed.steps import Step
from bench.speed.timing import clock_of, quantile, ratio_text, steps_in_turn
from bench.speed.variant import Case, Variant
from sparse_engine.layers.ids.block_ids import BlockIds

# By name: the network and its blocks.
TIMED = {
    "resnet18": (NETWORKS["resnet18"], "32x32"),
    "resnet18-16px": (replace(NETWORKS["resnet18"], image=(3, 16, 16)), "16x16"),
    "mlp-512": (Network("mlp-512", (512,), 128, 128, lambda: wide_mlp(512)), "1x1"),
    "mlp-2048": (Network("mlp-2048", (2048,), 128, 128, lambda: wide_mlp(2048)), "1x1"),
}
COLUMNS = ("network", "block", "sparsity", "batch", "threads", "step ms", "with the look / without")
FLAGS = {
    "rounds": 30, "sparsities": [0.8, 0.9], "batches": [1, 8, 64], "networks": list(TIMED),
    "thread_counts": [1, 2],
}  # fmt: skip


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each network, sparsity, batch and number of threads."""
    choices = (options.networks, options.sparsities, options.batches, options.thread_counts)
    for name, sparsity, batch, threads in itertools.product(*choices):
        torch.set_num_threads(threads)
        network, block = TIMED[name]
        case = Case(replace(network, batch=batch), sparsity, "uniform", block)
        step = Step(case, Variant("auto"), "cpu").run
        turns = {"with": step, "without": lambda step=step: _blindly(step)}
        seconds = steps_in_turn(turns, options.rounds, clock_of("cpu"), warm_up=3)
        ratio = ratio_text(seconds["with"], seconds["without"], digits=3)
        milliseconds = f"{1e3 * quantile(seconds['without'], 0.5):.3g}"
        yield [name, block, f"{sparsity}", f"{batch}", f"{threads}", milliseconds, ratio]


def _blindly(step) -> None:
    with no_look():
        step()


@contextmanager
def no_look() -> Iterator[None]:
    """Let layers inside take their index lists as they are."""
    look = BlockIds.layout
    BlockIds.layout = property(lambda layer: layer._layout, look.fset)
    try:
        yield
    finally:
        BlockIds.layout = look


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
