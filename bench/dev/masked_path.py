"""What the masked path and topology updates cost on a CPU: `make bench`.

Ratios of medians of what takes turns, so that both sides see the same machine; nothing is asserted
about time. The dense baseline is channels_last with the same data type and optimizer.
"""

import argparse
from collections.abc import Iterator

import torch

from bench.dev.harness import print_table
from bench.speed.networks import Network
from bench.speed.steps import Step
from bench.speed.timing import WALL, in_turn, ratio_text, steps_in_turn, time_text
from bench.speed.variant import DENSE, Case, Variant
from sparse_kernels import BlockLayout

# Name, size and number of images, and blocks.
NETWORKS = (
    ("wrn16-2", 32, 128, "32x32"),
    ("wrn16-2", 32, 128, "8x8"),
    ("wrn16-2", 32, 128, "1x1"),
    ("wrn16-2", 8, 128, "8x8"),
    ("resnet18", 32, 32, "32x32"),
    ("vgg16", 32, 32, "32x32"),
)
COLUMNS = ("what", "beside", "ms", "ratio")
FLAGS = {"rounds": 7}


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each network's step, each rule's update, and the rebuild of a layout."""
    masked = Variant("masked")
    for name, size, images, block in NETWORKS:
        case = Case(Network(name, (3, size, size), images, images), 0.8, "uniform", block)
        steps = {v: Step(case.of(v), v, "cpu").run for v in (masked, DENSE)}
        sparse, dense = steps_in_turn(steps, options.rounds, WALL).values()
        what = f"masked step of {name}, {images} images of {size}x{size}, {block}"
        yield [what, "dense step", time_text(sparse), ratio_text(sparse, dense)]
    network = Network("wrn28-10", (3, 32, 32), 8, 8)
    for rule in ("set", "rigl"):
        step = Step(Case(network, 0.8, "uniform", "32x32"), Variant("auto"), "cpu")
        times = in_turn({rule: step.updating_phases(rule)}, options.rounds, WALL)[rule]
        armed, update = times["armed step"], times["topology update"]
        what = f"{rule} update of wrn28-10, 32x32"
        yield [what, "its step of 8 images", time_text(update), ratio_text(update, armed)]
    ids = torch.randperm(200 * 200 * 9)[:100_000]
    layout = BlockLayout((3200, 3200, 3, 3), (16, 16), ids)
    rebuild = steps_in_turn({"": lambda: layout.update_(ids)}, options.rounds, WALL)[""]
    yield ["all index lists of 100,000 blocks", "", time_text(rebuild), ""]


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
