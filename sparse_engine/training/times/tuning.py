"""Tune a model's sparse layers: time kernel configurations for what a training step launches."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.device import DTYPES
from sparse_engine.errors import InputError
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.models.members import training_pair
from sparse_engine.models.workload import layer_calls
from sparse_engine.runs.model import dense_model
from sparse_engine.sparsity.layer_times import measure, measured_counts
from sparse_engine.training.network import build_network, plan_network
from sparse_kernels.cpu.library import TYPES, library
from sparse_kernels.dispatch.cost_model import kept_limits, limit_key
from sparse_kernels.tuner import save, tuning


def tune(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Find the fastest tiles for whatever the Triton kernels launch in a step, and keep them.

    One training step of a copy of the model is made, and every launch of its forward and backward
    is tuned on the numbers that it has there; the model stays as it is. The tiles are kept for this
    GPU and these versions in $SPARSE_ENGINE_CACHE (~/.cache/sparse-engine), and later processes use
    them. A tile is taken only if it is right and noticeably faster than the one in use. Call it
    before a CUDA graph is captured. In a distributed run every process calls it: the first one
    measures.

    Args:
        model: as it will train, after sparsify and, if it uses them, to_rows and fuse.
        x: one batch as in training, on the model's device.
        dtype: data type of autocast, if it trains under that.

    Returns:
        The tiles found, by launch.

    Raises:
        InputError: no layer runs on the Triton kernels.
    """
    twin = copy.deepcopy(model)
    twin.zero_grad(set_to_none=True)
    if not twin.training:
        twin.train()
    with tuning(x.device) as tuner:
        _make_step(twin, x, dtype)
    if not tuner.keys:
        raise InputError("no layer runs on the Triton kernels, so there is nothing to tune")
    save(x.device)
    return tuner.found


def tune_run(config: Config, info: DatasetInfo, device: torch.device) -> str:
    """Tune the layers of a run, with its batch size and data type; return what was found.

    On a CPU these are break-even densities of the native kernels, else tiles of the Triton kernels.
    """
    dtype, image = DTYPES[config.dtype], (info.channels, info.height, info.width)
    if device.type == "cpu" and config.backend != "triton":
        with torch.device("meta"):
            model = dense_model(config, info)
        plans = plan_network(config, model)
        found = tune_native(plans, model, image, config.batch_size, dtype)
        return f"break-even densities of {len(found)} layers"
    model = build_network(config, info, device).model
    generator = torch.Generator().manual_seed(config.seed)
    x = torch.randn((config.batch_size, *image), generator=generator)
    x = x.to(device, memory_format=torch.channels_last)
    found = tune(model, x, None if config.dtype == "fp32" else dtype)
    return f"{len(found)} launches of the sparse layers"


def _make_step(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> None:
    """Compute outputs for images x and the gradients of any loss; the random state stays."""
    device = x.device
    lower = dtype not in (None, torch.float32)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        labels = torch.zeros(len(x), dtype=torch.long, device=device)
        with torch.autocast(device.type, dtype if lower else None, enabled=lower):
            outputs, _ = training_pair(model, x, labels)
        found = [y for y in tree_leaves(outputs) if isinstance(y, Tensor) and y.requires_grad]
        torch.autograd.backward(found, [torch.randn_like(y) for y in found])


CPU = torch.device("cpu")
# What is faster by less is noise.
NOTICEABLE = 0.95


def tune_native(
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
        InputError: no layer could run on the native kernels.
    """
    sparse = [] if dtype not in TYPES or library() is None else [p for p in plans if not p.is_dense]
    if not sparse:
        raise InputError(
            "no layer runs on the Triton or the native kernels, so there is nothing to tune"
        )
    problems = layer_calls(model, image, batch, {plan.name for plan in sparse})
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
                native, masked = (
                    measure(plan, problem, module, some, CPU, dtype, [path] * (len(some) - 1))
                    for some, path in ((counts, "native"), (middle, "masked"))
                )
                densities = [count / plan.total for count in counts[:-1]]
                found[key] = crossing(densities, native[:-1], NOTICEABLE * masked[0])
    kept_limits().add({key: [density] for key, density in found.items()})
    kept_limits().save()
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
