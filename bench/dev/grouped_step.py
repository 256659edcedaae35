"""Training steps of members as one network against those of each by itself.

    python -m bench.dev.grouped_step                     WRN-16-8, three members, 80 and 90 % sparse
    python -m bench.dev.grouped_step --model wrn28-10 --batch 128 --rounds 20      on a GPU

Both are the trainer's own steps, without topology updates: on a GPU in bf16, captured, and the
single networks fused as a run has them; on a CPU in fp32. They take turns; ratios are of rounds.
"""

import argparse
from collections.abc import Iterator

import torch

from bench.dev.harness import print_table
from bench.speed.timing import STEP, clock_of, in_turn, ratio_text, time_text
from sparse_engine.config.config import Config
from sparse_engine.data.arrays import ImageArrays
from sparse_engine.data.catalog import TABLE
from sparse_engine.methods.resolve import resolve
from sparse_engine.training.grouped import start_group
from sparse_engine.training.network import build_network
from sparse_engine.training.step_times import random_step

COLUMNS = ("sparsity", "one by one, ms", "as one, ms", "as one / one by one")
FLAGS = {
    "threads": 1, "model": "wrn16-8", "batch": 32, "members": 3, "block": "64x64",
    "sparsities": [0.8, 0.9], "rounds": 3,
}  # fmt: skip
INFO = TABLE["cifar10"]


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each sparsity: medians, and percentiles of the rounds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch, members = options.batch, options.members
    # Three steps before a graph is recorded, and that one.
    warm_up = 5 if device.type == "cuda" else 1
    for sparsity in options.sparsities:
        config = resolve(
            Config(
                method="dst-ensemble",
                topology="static",
                dataset="cifar10",
                data_dir=".",
                model=options.model,
                batch_size=batch,
                members=members,
                epochs=members,
                block=options.block,
                distribution="uniform",
                dtype="bf16" if device.type == "cuda" else "fp32",
                parallel="grouped",
                sparsity=sparsity,
            )
        )
        empty = torch.zeros(batch, INFO.channels, INFO.height, INFO.width, dtype=torch.uint8)
        split = ImageArrays(empty, torch.zeros(batch, dtype=torch.long))
        group, _ = start_group(config, split, INFO, device, steps=1)
        alone = [build_network(config, INFO, device, member) for member in range(members)]
        steps = {
            "alone": {f"{n}": random_step(net, config, INFO, batch) for n, net in enumerate(alone)},
            "group": {STEP: random_step(group, config, INFO, members * batch)},
        }
        times = in_turn(steps, options.rounds, clock_of(device.type), warm_up)
        apart, together = times["alone"][STEP], times["group"][STEP]
        ratio = ratio_text(together, apart)
        yield [f"{sparsity:g}", time_text(apart), time_text(together), ratio]


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
