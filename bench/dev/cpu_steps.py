"""Training steps of whole networks on a CPU, by backend: `python -m bench.dev.cpu_steps`.

Ratios to the same dense network in channels_last, of steps taken in turn; `rows` is native after
to_rows, `fused` after fuse. Clocks are as in cpu_table.py.
"""

import argparse
import itertools
from collections.abc import Iterator

from bench.dev.harness import print_table
from bench.speed.networks import NETWORKS, Network
from bench.speed.steps import Step
from bench.speed.timing import clock_of, quantile, ratio_text, steps_in_turn
from bench.speed.variant import DENSE, Case, Variant
from sparse_engine.errors import InputError

TIMED = {name: NETWORKS[name].on("cpu") for name in ("wrn16-8", "wrn28-10", "resnet18")}
SMALL = {"wrn16-2": 128, "wrn16-4": 32}  # images of a step
TIMED = {name: Network(name, (3, 32, 32), images, images) for name, images in SMALL.items()} | TIMED
PATHS = {
    "dense": DENSE,
    "masked": Variant("masked"),
    "native": Variant("native"),
    "auto": Variant("auto"),
    "rows": Variant("native", rows=True),
    "fused": Variant("native", fuse=True),
}
COLUMNS = ("network", "sparsity", "block", "dense ms", *list(PATHS)[1:])
FLAGS = {
    "threads": 1, "rounds": 5, "distribution": "erk", "networks": list(TIMED),
    "sparsities": [0.8, 0.9, 0.95], "blocks": [16, 32, 64],
}  # fmt: skip


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each network, size of blocks and sparsity."""
    choices = itertools.product(options.networks, options.blocks, options.sparsities)
    for name, block, sparsity in choices:
        case = Case(TIMED[name], sparsity, options.distribution, f"{block}x{block}")
        cells = [name, f"{sparsity}", f"{block}"]
        try:
            steps = {p: Step(case.of(v), v, "cpu").run for p, v in PATHS.items()}
        except InputError as error:
            yield [*cells, f"no row: {error}"]
            continue
        seconds = steps_in_turn(steps, options.rounds, clock_of("cpu"))
        dense = seconds.pop("dense")
        ratios = [ratio_text(own, dense) for own in seconds.values()]
        yield [*cells, f"{1e3 * quantile(dense, 0.5):.0f}", *ratios]


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
