"""Measure on a CPU up to which density the layers of a run are faster on the gemm path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sparse_engine.distribution import LayerPlan
from sparse_engine.errors import InputError
from sparse_engine.layer_problems import layer_problems
from sparse_engine.layer_times import measure, measured_counts
from sparse_kernels.gemm_cost import LEAST_BLOCK
from sparse_kernels.gemm_limit import kept_limits, limit_key

CPU = torch.device("cpu")
# What is faster by less is noise.
NOTICEABLE = 0.95


def tune_gemm(
    plans: Sequence[LayerPlan],
    model: nn.Module,
    image: Sequence[int],
    batch: int,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Find each layer's break-even density against the masked path, and keep it.

    It is kept for this processor, these versions and this number of threads in
    $SPARSE_ENGINE_CACHE (~/.cache/sparse-engine), where `auto` finds it.

    Args:
        plans: of the layers.
        model: dense, on the meta device.
        image: (C, H, W).
        batch: images a step.
        dtype: float32, or what autocast computes in.

    Returns:
        The densities by what they are kept as.

    Raises:
        InputError: no layer could run on the gemm path.
    """
    sparse = [p for p in plans if not p.is_dense and min(p.block) >= LEAST_BLOCK]
    if not sparse:
        raise InputError(
            "no layer runs on the Triton kernels or the gemm path (blocks of 16 or wider), so "
            "there is nothing to tune"
        )
    problems = layer_problems(model, image, batch, {plan.name for plan in sparse})
    threads, found = torch.get_num_threads(), {}
    for plan in sparse:
        for problem in problems[plan.name]:
            sizes = (*plan.shape, 1, 1)[:4] + plan.block
            key = limit_key(dtype, sizes, problem.positions, threads)
            if key not in found:
                module = model.get_submodule(plan.name)
                counts = measured_counts(plan)
                # The masked path takes the same time at any density.
                middle = (counts[len(counts) // 2], plan.total)
                gemm, masked = (
                    measure(plan, problem, module, some, CPU, dtype, [path] * (len(some) - 1))
                    for some, path in ((counts, "gemm"), (middle, "masked"))
                )
                densities = [count / plan.total for count in counts[:-1]]
                found[key] = crossing(densities, gemm[:-1], NOTICEABLE * masked[0])
    kept_limits().add({key: [density] for key, density in found.items()})
    return found


def crossing(densities: Sequence[float], seconds: Sequence[float], limit: float) -> float:
    """Return the density at which a time first exceeds a limit, on straight lines between; 0 if
    it does from the first on, and the last density measured if it never does."""
    before = None
    for point in zip(densities, seconds):
        if point[1] > limit:
            if before is None:
                return 0.0
            share = (limit - before[1]) / (point[1] - before[1])
            return before[0] + share * (point[0] - before[0])
        before = point
    return densities[-1]
