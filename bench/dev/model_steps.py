"""Training steps of timm's models on a CPU, dense and sparse: `python -m bench.dev.model_steps`.

Steps with SGD on random images in channels_last, taken in turn; ratios of each round. Clocks are as
in cpu_table.py. Blocks are drawn at random, equally in all layers.
"""

import argparse
import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from bench.dev.harness import print_table
from bench.speed.timing import clock_of, quantile, ratio_text, steps_in_turn
from sparse_engine import sparsify

COLUMNS = ("model, batch, pixels", "block", "dense ms", "0.8", "0.9")
FLAGS = {
    "threads": 1, "rounds": 7, "models": ["vit_small_patch16_224", "resnet18"], "blocks": [32],
    "batch": 8, "pixels": 224,
}  # fmt: skip


def step_of(model: nn.Module, batch: int, pixels: int) -> Callable[[], None]:
    """Return a training step of a model of ten classes."""
    images = torch.randn(batch, 3, pixels, pixels).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each model and block."""
    import timm

    for name in options.models:
        dense = timm.create_model(name, num_classes=10).to(memory_format=torch.channels_last)
        for block in options.blocks:
            models = {"dense": dense}
            for sparsity in COLUMNS[3:]:
                models[sparsity] = copy.deepcopy(dense)
                sparsify(
                    models[sparsity], float(sparsity), "uniform", (block, block), init="random"
                )
            steps = {n: step_of(m, options.batch, options.pixels) for n, m in models.items()}
            seconds = steps_in_turn(steps, options.rounds, clock_of("cpu"))
            own = seconds.pop("dense")
            cells = [f"{name}, {options.batch}, {options.pixels}", f"{block}"]
            cells += [f"{1e3 * quantile(own, 0.5):.0f}"]
            yield [*cells, *(ratio_text(of_sparse, own) for of_sparse in seconds.values())]


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
