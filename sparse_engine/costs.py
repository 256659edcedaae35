"""What a run costs: FLOPs of training and test against one dense network, parameters and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sparse_engine.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.distribution import LayerPlan
from sparse_engine.flops import dense_flops, forward_flops, step_flops
from sparse_engine.network import dense_model, plan_network
from sparse_engine.phases import Phase


def run_costs(config: Config, info: DatasetInfo, phases: Sequence[Phase]) -> dict[str, Any]:
    """Return a run's costs, from its plan alone.

    Args:
        config: resolved.
        info: of the data set.
        phases: of build_phases.

    Returns:
        train_flops; train_flops_ratio to a dense run of config.dense_epochs; test_flops_ratio,
        of all tickets to one dense network; parameters and bytes (fp32, or as stored) of all
        tickets together; `plans`, the layers; `layer_flops`, dense forward FLOPs by layer.
    """
    with torch.device("meta"):
        model = dense_model(config, info)
    plans = plan_network(config, model)
    by_layer = dense_flops(model, (info.channels, info.height, info.width))
    dense = float(sum(by_layer.values()))
    sparse = forward_flops(by_layer, {plan.name: plan.density for plan in plans})
    images = sum(_phase_flops(phase, sparse, dense) for phase in phases) * config.batch_size
    steps = sum(phase.steps for phase in phases)
    dense_steps = config.dense_epochs / config.epochs * steps
    tickets = sum(phase.save for phase in phases)
    parameters = tickets * (sum(p.numel() for p in model.parameters()) - _saved(plans))
    return {
        "train_flops": images,
        "train_flops_ratio": images / (3 * dense * dense_steps * config.batch_size),
        "test_flops_ratio": tickets * sparse / dense,
        "parameters": parameters,
        "bytes": 4 * parameters,
        "plans": plans,
        "layer_flops": by_layer,
    }


def _phase_flops(phase: Phase, sparse: float, dense: float) -> float:
    """Return the training FLOPs of a phase for one image a step (Evci et al. 2020, app. H)."""
    schedule = phase.update_schedule()
    if schedule is None or phase.topology is None or phase.topology.rule != "rigl":
        return phase.steps * step_flops(sparse, dense, None)
    dynamic = min(phase.steps, schedule.stop or phase.steps)
    each = step_flops(sparse, dense, schedule.interval)
    return dynamic * each + (phase.steps - dynamic) * step_flops(sparse, dense, None)


def _saved(plans: Sequence[LayerPlan]) -> int:
    return sum(plan.weights - plan.stored for plan in plans if not plan.is_dense)
