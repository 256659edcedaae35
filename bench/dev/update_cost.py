"""Topology updates beside training steps on a CPU: `python -m bench.dev.update_cost`.

Milliseconds of a usual step with SGD, of a step that collects the dense gradient (RigL's before an
update), and of the update; the last column has what both cost more than a usual step, in steps.
Clocks are as in cpu_table.py.
"""

import argparse
import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from bench.dev.harness import print_table
from bench.speed.timing import clock_of, quantile
from sparse_engine import DynamicSparsity, sparsify
from sparse_engine.models.build import build_model

COLUMNS = ("network", "block", "sparsity", "rule", "step", "collects", "update", "more, in steps")
FLAGS = {
    "threads": 1, "rounds": 5, "networks": ["wrn16-4"], "blocks": [1, 4, 16],
    "sparsities": [0.8, 0.9], "rules": ["rigl", "set"], "batch": 32,
}  # fmt: skip
INTERVAL = 2


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each network, block, sparsity and rule."""
    choices = (options.networks, options.blocks, options.sparsities, options.rules)
    for name, block, sparsity, rule in itertools.product(*choices):
        model = build_model(name, classes=10, channels=3, height=32, width=32)
        sparsify(model, sparsity, "uniform", (block, block))
        usual, collects, update = (
            quantile(seconds, 0.5) for seconds in _times(model, rule, options)
        )
        cells = [name, f"{block}x{block}", f"{sparsity}", rule]
        cells += [f"{1e3 * seconds:.1f}" for seconds in (usual, collects, update)]
        yield [*cells, f"{(collects + update - usual) / usual:.2f}"]


def _times(
    model: torch.nn.Module, rule: str, options: argparse.Namespace
) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds of usual steps, of steps before an update, and of updates."""
    x = torch.randn(options.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (options.batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps = INTERVAL * (options.rounds + 1)
    dynamic = DynamicSparsity(
        model, optimizer, rule=rule, interval=INTERVAL, total_steps=2 * steps, stop=None
    )
    clock, times = clock_of("cpu"), ([], [], [])
    for number in range(steps + 1):
        moments = [clock.mark()]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        moments.append(clock.mark())
        changed = dynamic.step()
        moments.append(clock.mark())
        step, update = (clock.seconds(a, b) for a, b in itertools.pairwise(moments))
        if number > INTERVAL:  # the first ones warm up
            times[int(changed)].append(step)
            if changed:
                times[2].append(update)
    return times


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
