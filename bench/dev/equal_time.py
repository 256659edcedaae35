"""What taps and strips reach in a study beside the time predicted for them on an H200.

    python -m bench.dev.equal_time                  bench/studies/wrn10-4-cifar10-16px.csv

Nothing of the time is measured: it is that of the three passes of WRN-28-10's layers of 320 and
640 equal channels by the model of roofline.py, over the dense ones'. A row that is in the front is
predicted to be both faster than all that is more accurate, and more accurate than all that is
faster.
"""

import argparse
import statistics
from collections.abc import Iterator

from bench.dev.harness import print_table
from bench.dev.roofline import Shape, dense_pass, passes
from bench.dev.waves import seconds
from bench.report.records import read
from bench.speed.roofline import H200
from bench.study.figure import pareto
from bench.study.runs import COLUMNS as STUDY_COLUMNS
from sparse_engine.config.flags import user_path
from sparse_engine.layers.blocks import parse_block

COLUMNS = ("predicted time / dense", "accuracy %", "n", "sparsity", "block", "taps", "front")
FLAGS = {"table": "bench/studies/wrn10-4-cifar10-16px.csv"}
# Of each of its two wide stages WRN-28-10 has seven such layers.
SHAPES = (Shape((320, 320, 3, 3), (16, 16), 1), Shape((640, 640, 3, 3), (8, 8), 1))
BATCH = 128


def predicted(block: tuple[int, int], taps: str, sparsity: float) -> float:
    """Return the time of three passes over the dense time; all taps are multiplied as strips."""
    ours = theirs = 0.0
    for shape in SHAPES:
        layer = shape.sparse(block, 1 - sparsity, taps != "each", BATCH)
        ours += sum(seconds(work, H200) for work in passes(layer))
        theirs += 3 * dense_pass(shape.dense(BATCH), H200)
    return ours / theirs


def rows(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Yield the study's points by predicted time."""
    accuracies: dict[tuple[str, str, str], list[float]] = {}
    for row in read(user_path(options.table), STUDY_COLUMNS, "--table"):
        point = row["sparsity"], row["block"], row["taps"]
        accuracies.setdefault(point, []).append(100 * float(row["accuracy"]))
    places = {
        point: (predicted(parse_block(point[1]), point[2], float(point[0])), statistics.mean(own))
        for point, own in accuracies.items()
    }
    front = pareto(list(places.values()))
    for point, (time, accuracy) in sorted(places.items(), key=lambda item: item[1]):
        n, is_front = f"{len(accuracies[point])}", (time, accuracy) in front
        yield f"{time:.2f}", f"{accuracy:.2f}", n, *point, "yes" if is_front else ""


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
