"""Budgets other than weights: what a run's layers may cost is decided once, before it begins.

`--distribution timed` becomes a density for each layer, `--match flops|time` the sparsity at which
a distribution costs what was asked for. What is saved with a run is what was decided, so that it
is resumed, repeated and evaluated without measuring again.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.device import DTYPES
from sparse_engine.errors import InputError
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.methods.resolve import resolve
from sparse_engine.models.workload import dense_flops, forward_flops, layer_calls
from sparse_engine.runs.model import dense_model
from sparse_engine.sparsity.distribution import total_sparsity
from sparse_engine.sparsity.layer_times import measure_layer_times
from sparse_engine.sparsity.time_budget import Curves, score, time_ratio, timed_plans
from sparse_engine.training.network import plan_network

Cost = Callable[[Sequence[LayerPlan]], float]
# Bisections of a sparsity: the last is finer than any block.
BISECTIONS = 50


def resolve_budget(config: Config, info: DatasetInfo, device: torch.device) -> Config:
    """Return a configuration whose budget is of weights, and say what was decided.

    Args:
        config: resolved. One whose budget is of weights already comes back as it is.
        info: of the data set.
        device: where the run would be, and what times are measured on.

    Raises:
        InputError: the budget is out of reach.
    """
    if config.distribution == "timed" and not config.densities:
        return _timed(config, info, device)
    if config.match != "params":
        return _matched(config, info, device)
    return config


def _timed(config: Config, info: DatasetInfo, device: torch.device) -> Config:
    full, curves = _measured(config, info, device)
    plans = timed_plans(full, curves, config.time_budget or 1.0)
    sparsity = total_sparsity(plans)
    print(
        f"timed: {time_ratio(plans, curves):.3f} of the dense layers' time at sparsity "
        f"{sparsity:.4f}, score {score(plans):.1f}"
    )
    densities = {plan.name: plan.density for plan in plans}
    return resolve(replace(config, densities=densities, sparsity=sparsity))


def _matched(config: Config, info: DatasetInfo, device: torch.device) -> Config:
    model = _model(config, info)
    if config.match == "flops":
        flops = dense_flops(model, (info.channels, info.height, info.width))
        dense = sum(flops.values())

        def cost(plans: Sequence[LayerPlan]) -> float:
            return forward_flops(flops, {p.name: p.density for p in plans}) / dense
    else:
        _, curves = _measured(config, info, device)

        def cost(plans: Sequence[LayerPlan]) -> float:
            return time_ratio(plans, curves)

    wanted = 1 - (config.sparsity or 0.0)
    sparsity, share = matching_sparsity(lambda s: plan_network(config, model, s), cost, wanted)
    what = "FLOPs" if config.match == "flops" else "measured layer time"
    print(f"matched: {share:.3f} of the dense {what} at sparsity {sparsity:.4f}")
    return resolve(replace(config, sparsity=sparsity, match="params"))


def matching_sparsity(
    plan: Callable[[float], Sequence[LayerPlan]], cost: Cost, budget: float
) -> tuple[float, float]:
    """Return the lowest sparsity, in whole blocks, whose plans cost no more than a budget.

    Args:
        plan: gives the plans of a sparsity.
        cost: of plans, as a share of what dense layers cost.
        budget: the most it may be.

    Returns:
        The sparsity, and the cost there.

    Raises:
        InputError: the fewest blocks cost more.
    """
    full = plan(0.0)
    fewest = [replace(p, active=p.group) for p in full]
    # A rounding error below, so that a block in each layer is still within the budget of weights.
    low, high = 0.0, total_sparsity(fewest) - 1e-9
    if cost(full) <= budget:
        return 0.0, cost(full)
    if high <= 0 or cost(plan(high)) > budget:
        raise InputError(
            f"sparsity {1 - budget:g} is out of reach: with the fewest blocks the layers still "
            f"cost {cost(fewest):.3f} of the dense ones; lower --sparsity, or use smaller blocks"
        )
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(plan(middle)) <= budget else (middle, high)
    return high, cost(plan(high))


def _measured(
    config: Config, info: DatasetInfo, device: torch.device
) -> tuple[list[LayerPlan], Curves]:
    """Return the full plans of a run's layers, and their measured times."""
    model = _model(config, info)
    # At sparsity 0 all distributions are one, and `timed` is not known yet.
    full = plan_network(replace(config, distribution="uniform"), model, sparsity=0.0)
    image = (info.channels, info.height, info.width)
    problems = layer_calls(model, image, config.batch_size, {plan.name for plan in full})
    print(f"timing {len(full)} layers on {device}, unless they were before", flush=True)
    return full, measure_layer_times(full, problems, model, device, DTYPES[config.dtype])


def _model(config: Config, info: DatasetInfo) -> nn.Module:
    with torch.device("meta"):
        return dense_model(config, info)
