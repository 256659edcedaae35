"""Tune a model's sparse layers: time kernel configurations for the shapes it will train with."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.architecture import dense_model
from sparse_engine.break_even import tune_gemm
from sparse_engine.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.errors import InputError
from sparse_engine.layer import SparseLayer
from sparse_engine.modules import SparseConv2d
from sparse_engine.network import build_network, plan_network
from sparse_engine.precision import DTYPES
from sparse_kernels.backend import backend_of
from sparse_kernels.functional import convolution_geometry
from sparse_kernels.matmul import ONE_PIXEL
from sparse_kernels.tuner import save, tune_conv2d


@torch.no_grad()
def tune(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Find the fastest tiles for every sparse layer that runs on the Triton kernels, and keep them.

    They are kept for this GPU and these versions in $SPARSE_ENGINE_CACHE (~/.cache/sparse-engine),
    and later processes use them. A tile is taken only if it is right and noticeably faster than the
    one in use. Call it before a CUDA graph is captured. In a distributed run every process calls
    it: the first one measures.

    Args:
        model: after sparsify and to_rows.
        x: one batch as in training, on the model's device.
        dtype: data type of the layers under autocast; that of their values unless said.

    Returns:
        The tiles found, by launch.

    Raises:
        InputError: no layer runs on the Triton kernels.
    """
    seen: dict[str, tuple[SparseLayer, Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(partial(_note, seen, name))
        for name, layer in model.named_modules()
        if isinstance(layer, SparseLayer)
    ]
    was_training = model.training
    try:
        # In eval mode, batch-norm statistics stay as they are.
        model.eval()(x)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    found: dict[str, Any] = {}
    tuned = 0
    for layer, images in seen.values():
        images = images.to(dtype or layer.values.dtype)
        layout = layer.layout
        if backend_of(images, layout.tensors(), layout.sizes()) == "triton":
            found |= _tune_layer(layer, images)
            tuned += 1
    if not tuned:
        raise InputError("no layer runs on the Triton kernels, so there is nothing to tune")
    save(x.device)
    return found


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


def _note(seen: dict, name: str, layer: SparseLayer, arguments: tuple[Tensor, ...]) -> None:
    seen.setdefault(name, (layer, arguments[0].detach()))


def _tune_layer(layer: SparseLayer, x: Tensor) -> dict[str, Any]:
    values = layer.values.detach().to(x.dtype)
    if isinstance(layer, SparseConv2d):
        x, geometry = convolution_geometry(
            x, layer.layout, layer.stride, layer.padding, layer.dilation
        )
    else:
        x, geometry = x.reshape(-1, x.shape[-1])[:, :, None, None], ONE_PIXEL
    return tune_conv2d(x, values, layer.layout, *geometry)
