"""Training steps of whole networks on a CPU, by backend: `python -m bench.dev.cpu_steps`.

Ratios to the same dense network in channels_last, of steps taken in turn; `rows` is gemm after
to_rows. Clocks are as in cpu_table.py.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from bench.dev.cpu_table import ratio, seconds
from sparse_engine import sparsify, to_rows
from sparse_engine.errors import InputError
from sparse_engine.models.build import build_model
from sparse_kernels.dispatch.backend import VARIABLE

# Name, size and number of images.
NETWORKS = {
    "wrn16-2": (32, 128),
    "wrn16-8": (32, 32),
    "wrn28-10": (32, 8),
    "resnet18": (32, 32),
}
PATHS = ("masked", "gemm", "auto", "rows")


def training_step(
    name: str, backend: str, sparsity: float, distribution: str, block: int
) -> Callable[[], None]:
    """Return one SGD step of a network; of the dense one for the backend "dense"."""
    size, images = NETWORKS[name]
    torch.manual_seed(0)
    model = build_model(name, classes=10, channels=3, height=size, width=size)
    if backend != "dense":
        sparsify(model, sparsity, distribution, (block, block), init="random")
    model = model.to(memory_format=torch.channels_last)
    if backend == "rows":
        to_rows(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(images, 3, size, size).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (images,))
    path = {"dense": "auto", "rows": "gemm"}.get(backend, backend)

    def step() -> None:
        os.environ[VARIABLE] = path
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--distribution", default="erk")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--sparsities", nargs="*", type=float, default=(0.8, 0.9, 0.95))
    parser.add_argument("--blocks", nargs="*", type=int, default=(16, 32, 64))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    print(f"torch {torch.__version__}, {options}")
    print(f"| network | sparsity | block | dense ms | {' | '.join(PATHS)} |")
    print("|---" * (4 + len(PATHS)) + "|")
    for name in options.networks:
        for block in options.blocks:
            for sparsity in options.sparsities:
                try:
                    steps = {
                        path: training_step(name, path, sparsity, options.distribution, block)
                        for path in ("dense", *PATHS)
                    }
                except InputError as error:
                    print(f"no row: {name} {sparsity} {block}: {error}")
                    continue
                times = seconds(steps, options.rounds, clock)
                milliseconds = 1e3 * statistics.median(times["dense"])
                found = " | ".join(ratio(times, path, "dense") for path in PATHS)
                print(
                    f"| {name} | {sparsity} | {block} | {milliseconds:.0f} | {found} |", flush=True
                )


if __name__ == "__main__":
    main()
