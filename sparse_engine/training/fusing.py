"""Whether a run's model is fused, and whether it keeps rows order, by its layers and its device."""

import torch
from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.device import DTYPES
from sparse_engine.layers.modules import SparseConv2d
from sparse_kernels import BlockLayout
from sparse_kernels.dispatch.backend import choose_backend


def runs_fused(config: Config, model: nn.Module, device: torch.device) -> bool:
    """Return whether a run's model is fused.

    Fused blocks are for models in rows order; `auto` takes them on a CPU, too, where norms run on
    the native kernels if sparse layers may. What is compiled is fused by the compiler.
    """
    if runs_in_rows(config, model, device):
        return True
    is_native = device.type == "cpu" and config.backend in ("auto", "native") and not config.compile
    return is_native and config.fuse == "auto" and bool(_convolutions(model))


def runs_in_rows(config: Config, model: nn.Module, device: torch.device) -> bool:
    """Return whether a run's model keeps rows order.

    It is for the Triton kernels; `auto` takes it on a GPU, where a sparse convolution at least runs
    on them: it would be copies and nothing else for a network without.
    """
    convolutions = _convolutions(model)
    if config.fuse != "auto" or device.type != "cuda":
        return bool(convolutions) and config.fuse == "on"
    if config.backend != "auto":
        return bool(convolutions) and config.backend == "triton"
    return any(_has_kernel(layer.layout, device, DTYPES[config.dtype]) for layer in convolutions)


def _convolutions(model: nn.Module) -> list[SparseConv2d]:
    return [m for m in model.modules() if isinstance(m, SparseConv2d)]


def _has_kernel(layout: BlockLayout, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a layer runs on the Triton kernels of a device, by its slots."""
    sizes, density = tuple(layout.sizes()), layout.slots / layout.total
    return choose_backend(device, dtype, sizes, density) == "triton"
