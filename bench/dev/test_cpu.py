"""What the masked path costs on a CPU, beside the same dense model: `make bench`.

Ratios of medians of interleaved runs, so that both sides see the same machine. Nothing is
asserted about time. The dense baseline is channels_last with the same data type and optimizer.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from sparse_engine import sparsify
from sparse_engine.models.build import build_model
from sparse_engine.sparsity.topology import Topology
from sparse_kernels import BlockLayout
from sparse_kernels.dispatch.backend import VARIABLE

MODELS = [
    # name, image size, batch, block
    ("wrn16-2", 32, 128, (32, 32)),
    ("wrn16-2", 32, 128, (8, 8)),
    ("wrn16-2", 32, 128, (1, 1)),
    ("wrn16-2", 8, 128, (8, 8)),
    ("resnet18", 32, 32, (32, 32)),
    ("vgg16", 32, 32, (32, 32)),
]
ROUNDS = 7


def training_step(name: str, size: int, batch: int, block: tuple[int, int] | None) -> Callable:
    """Return one SGD step of a model, sparse at 80 % when a block is given."""
    model = build_model(name, classes=10, channels=3, height=size, width=size)
    if block:
        sparsify(model, 0.8, "uniform", block, init="random")
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    step.model, step.optimizer = model, optimizer
    return step


class Timed:
    """Calls a function and keeps the seconds each call took."""

    def __init__(self, function: Callable) -> None:
        self.function, self.seconds = function, []

    def __call__(self) -> None:
        began = time.perf_counter()
        self.function()
        self.seconds.append(time.perf_counter() - began)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def compare(benchmark, measured: Callable, baseline: Callable) -> tuple[Timed, Timed]:
    """Run both in turn; pytest-benchmark records the first."""
    ours, theirs = Timed(measured), Timed(baseline)
    measured()
    baseline()
    benchmark.pedantic(ours, setup=theirs, rounds=ROUNDS)
    return ours, theirs


@pytest.mark.parametrize(("name", "size", "batch", "block"), MODELS)
def test_masked_step_against_dense(benchmark, monkeypatch, name, size, batch, block):
    """Time a training step of the masked path against the same dense model's."""
    monkeypatch.setenv(VARIABLE, "masked")
    sparse = training_step(name, size, batch, block)
    ours, theirs = compare(benchmark, sparse, training_step(name, size, batch, None))
    benchmark.extra_info["masked / dense step"] = round(ours.median / theirs.median, 3)


@pytest.mark.parametrize("rule", ["set", "rigl"])
def test_topology_update_of_a_large_network(benchmark, rule):
    """Time an update of WRN-28-10 at 32x32 blocks against one training step of batch 8."""
    step = training_step("wrn28-10", 32, 8, (32, 32))
    topology = Topology(step.model, step.optimizer, rule)

    def armed_step() -> None:
        topology.arm()
        step()

    armed_step()
    ours, theirs = compare(benchmark, lambda: topology.update(0.3), armed_step)
    benchmark.extra_info["update / step"] = round(ours.median / theirs.median, 4)


def test_layout_rebuild_of_many_blocks(benchmark):
    """Time the rebuild of all index lists for 100,000 active blocks: one sort a list."""
    ids = torch.randperm(200 * 200 * 9)[:100_000]
    layout = BlockLayout((3200, 3200, 3, 3), (16, 16), ids)
    rebuild = Timed(lambda: layout.update_(ids))
    rebuild()
    benchmark.pedantic(rebuild, rounds=ROUNDS)
    benchmark.extra_info["milliseconds"] = round(1e3 * rebuild.median, 2)
