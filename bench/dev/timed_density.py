"""What a budget of time buys: `timed`, ERK and uniform at equal layer time, on this machine.

    python -m bench.dev.timed_density --model wrn16-8 --time-budget 0.35 --batch-size 32

Columns: sparsity and FLOPs; the layers' time over that of the dense ones, as the curves between
measured densities say and measured anew at the very blocks; a whole training step over the dense
network's, steps taken in turn; and the score, the harmonic mean of a channel's connections.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE, DatasetInfo
from sparse_engine.device import DTYPES, autocast
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.methods.resolve import resolve
from sparse_engine.models.workload import dense_flops, forward_flops, layer_calls
from sparse_engine.runs.model import plain_model
from sparse_engine.sparsity.distribution import total_sparsity
from sparse_engine.sparsity.layer_times import measure, measure_layer_times
from sparse_engine.sparsity.time_budget import score, time_ratio, timed_plans
from sparse_engine.training.budget import matching_sparsity
from sparse_engine.training.network import build_network, plan_network
from sparse_kernels.timing import once


def training_step(
    config: Config, info: DatasetInfo, device: torch.device, sparsity: float
) -> Callable[[], None]:
    """Return a step of the network that a run of this configuration would have."""
    network = build_network(config, info, device, sparsity=sparsity)
    size = (config.batch_size, info.channels, info.height, info.width)
    x = torch.randn(size, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(info.classes, size[:1], device=device)

    def step() -> None:
        network.optimizer.zero_grad()
        with autocast(device, config.dtype):
            loss = F.cross_entropy(network.model(x), y)
        loss.backward()
        network.optimizer.step()

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10", choices=TABLE)
    parser.add_argument("--model", default="wrn16-8")
    parser.add_argument("--block", default="32x32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--time-budget", type=float, default=0.35)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
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

    plans: dict[str, list[LayerPlan]] = {"timed": timed_plans(full, curves, share)}
    for name in ("erk", "uniform"):
        other = replace(config, distribution=name)
        sparsity, _ = matching_sparsity(
            lambda s, other=other: plan_network(other, model, s),
            lambda found: time_ratio(found, curves),
            share,
        )
        plans[name] = plan_network(other, model, sparsity)

    steps = {"dense": training_step(config, info, device, 0.0)}
    for name, found in plans.items():
        densities = {plan.name: plan.density for plan in found}
        own = replace(config, distribution="timed", densities=densities)
        steps[name] = training_step(own, info, device, total_sparsity(found))
    taken = {name: [] for name in steps}
    for _ in range(options.rounds + 1):
        for name, step in steps.items():
            taken[name].append(once(step, device.type == "cuda"))
    seconds = {name: statistics.median(times[1:]) for name, times in taken.items()}

    print(f"torch {torch.__version__}, {options}")
    print(f"dense: layers {sum(c.dense for c in curves.values()):.3f} s, step", end=" ")
    print(f"{seconds['dense']:.3f} s, score {score(full):.1f}")
    print("| distribution | sparsity | FLOPs | layers, expected | layers | step | score |")
    print("|---" * 7 + "|")
    for name, found in plans.items():
        anew = [
            measure(p, call, model.get_submodule(p.name), (p.active, p.total), device, dtype)
            if not p.is_dense
            else (curves[p.name].dense,) * 2
            for p in found
            for call in problems[p.name]
        ]
        ratio = forward_flops(flops, {p.name: p.density for p in found}) / sum(flops.values())
        expected = time_ratio(found, curves)
        print(
            f"| {name} | {total_sparsity(found):.3f} | {ratio:.3f} | {expected:.3f} "
            f"| {sum(s for s, _ in anew) / sum(d for _, d in anew):.3f} "
            f"| {seconds[name] / seconds['dense']:.3f} | {score(found):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
