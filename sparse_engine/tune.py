"""Tune a model's sparse layers: time kernel configurations for what a training step launches."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparse_engine.architecture import dense_model
from sparse_engine.break_even import tune_gemm
from sparse_engine.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.errors import InputError
from sparse_engine.models.members import training_pair
from sparse_engine.network import build_network, plan_network
from sparse_engine.precision import DTYPES
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

    On a CPU these are break-even densities of the gemm path, else tiles of the Triton kernels.
    """
    dtype, image = DTYPES[config.dtype], (info.channels, info.height, info.width)
    if device.type == "cpu" and config.backend != "triton":
        with torch.device("meta"):
            model = dense_model(config, info)
        plans = plan_network(config, model)
        found = tune_gemm(plans, model, image, config.batch_size, dtype)
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
