"""What a budget of time buys: `timed`, ERK and uniform at equal layer time, on this machine.

    python -m bench.dev.timed_density --model wrn16-8 --time-budget 0.35 --batch-size 32

Columns: sparsity and FLOPs; the layers' time over that of the dense ones, as the curves between
measured densities say and measured anew at the very blocks; a whole training step over the dense
network's, steps taken in turn; and the score, the harmonic mean of a channel's connections.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace

import torch

from bench.dev.harness import print_table
from bench.speed.timing import clock_of, quantile, steps_in_turn
from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.device import DTYPES
from sparse_engine.methods.resolve import resolve
from sparse_engine.models.workload import dense_flops, forward_flops, layer_calls
from sparse_engine.runs.model import plain_model
from sparse_engine.sparsity.distribution import total_sparsity
from sparse_engine.sparsity.layer_times import measure, measure_layer_times
from sparse_engine.sparsity.time_budget import score, time_ratio, timed_plans
from sparse_engine.training.budget import matching_sparsity
from sparse_engine.training.network import build_network, plan_network
from sparse_engine.training.step_times import random_step

COLUMNS = ("distribution", "sparsity", "FLOPs", "layers, expected", "layers", "step", "score")
FLAGS = {
    "dataset": ("cifar10", *(name for name in TABLE if name != "cifar10")), "model": "wrn16-8",
    "block": "32x32", "batch_size": 32, "time_budget": 0.35, "threads": 1, "rounds": 5,
    "dtype": ("fp32", *(name for name in DTYPES if name != "fp32")),
}  # fmt: skip


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for the dense network, in seconds, and for each distribution."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    info, share = TABLE[options.dataset], options.time_budget
    given = {k: getattr(options, k) for k in ("dataset", "model", "block", "batch_size", "dtype")}
    config = resolve(Config(method="static", **given))
    with torch.device("meta"):
        model = plain_model(config, info)
    image = (info.channels, info.height, info.width)
    full = plan_network(config, model, 0.0)
    problems = layer_calls(model, image, config.batch_size, {p.name for p in full})
    dtype = DTYPES[config.dtype]
    curves = measure_layer_times(full, problems, model, device, dtype)
    flops = dense_flops(model, image)

    plans = {"timed": timed_plans(full, curves, share)}
    for name in ("erk", "uniform"):
        other = replace(config, distribution=name)
        sparsity, _ = matching_sparsity(
            lambda s, other=other: plan_network(other, model, s),
            lambda plan: time_ratio(plan, curves),
            share,
        )
        plans[name] = plan_network(other, model, sparsity)

    networks = {"dense": build_network(config, info, device, sparsity=0.0)}
    for name, plan in plans.items():
        densities = {layer.name: layer.density for layer in plan}
        own = replace(config, distribution="timed", densities=densities)
        networks[name] = build_network(own, info, device, sparsity=total_sparsity(plan))
    steps = {n: random_step(net, config, info, config.batch_size) for n, net in networks.items()}
    # Three steps before a graph is recorded, and that one.
    warm_up = 5 if device.type == "cuda" else 1
    times = steps_in_turn(steps, options.rounds, clock_of(device.type), warm_up)
    seconds = {name: quantile(own, 0.5) for name, own in times.items()}
    layers = sum(curve.dense for curve in curves.values())
    whole = ("0", "1", "1", f"1 ({layers:.3f} s)", f"1 ({seconds['dense']:.3f} s)")
    yield ["dense", *whole, f"{score(full):.1f}"]

    for name, plan in plans.items():
        anew = [
            measure(p, call, model.get_submodule(p.name), (p.active, p.total), device, dtype)
            if not p.is_dense
            else (curves[p.name].dense,) * 2
            for p in plan
            for call in problems[p.name]
        ]
        multiplied = forward_flops(flops, {p.name: p.density for p in plan}) / sum(flops.values())
        yield [
            name,
            f"{total_sparsity(plan):.3f}",
            f"{multiplied:.3f}",
            f"{time_ratio(plan, curves):.3f}",
            f"{sum(s for s, _ in anew) / sum(d for _, d in anew):.3f}",
            f"{seconds[name] / seconds['dense']:.3f}",
            f"{score(plan):.1f}",
        ]


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
