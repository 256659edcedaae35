"""Graphs of networks (torch.fx): layers, and what works on each channel by itself."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_engine.errors import InputError, first_line
from sparse_engine.layers.attention import ProjectedAttention
from sparse_engine.layers.base import SparseLayer

_POOL_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_POOL_FUNCTIONS = (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d)
# What knows nothing of channels' order.
MODULES = (
    *(nn.Identity, nn.Dropout, nn.Dropout2d, *_POOL_MODULES),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish),
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Tanh),
)
FUNCTIONS = (
    *(operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, torch.add, torch.mul),
    *(torch.relu, torch.sigmoid, torch.tanh, F.relu, F.gelu, F.silu, F.leaky_relu, F.hardswish),
    *(*_POOL_FUNCTIONS, F.dropout),
)
METHODS = ("relu", "relu_", "sigmoid", "tanh", "add", "add_", "mul", "contiguous")
LAYERS = (nn.Conv2d, nn.Linear, SparseLayer, _BatchNorm)
_PIXELS = ((2, 3), [2, 3], (-2, -1), [-2, -1])


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        known = isinstance(module, (*LAYERS, *MODULES))
        return known or super().is_leaf_module(module, name)

    def call_module(self, m: nn.Module, *arguments: Any) -> Any:
        if isinstance(m, ProjectedAttention):
            raise TypeError("which channels of an attention belong together is not known")
        return super().call_module(m, *arguments)


def traced(model: nn.Module, aim: str) -> fx.Graph:
    """Return a model's graph, whose leaves are layers, MODULES and all other modules of PyTorch.

    Raises:
        InputError: a forward that cannot be traced; the words are "a Model cannot be `aim`".
    """
    try:
        return _Tracer().trace(model)
    # A forward that meets tensors without numbers may fail in any way.
    except Exception as error:
        reason = first_line(error)
        raise InputError(f"a {type(model).__name__} cannot be {aim}: {reason}") from None


def is_channelwise(node: fx.Node, module: nn.Module | None = None) -> bool:
    """Return whether a node of a graph treats every channel of its inputs alike.

    Args:
        node: of any kind.
        module: that a call_module node calls.
    """
    if node.op == "call_module":
        return isinstance(module, MODULES)
    if node.op == "call_function":
        return node.target in FUNCTIONS
    return node.op == "call_method" and node.target in METHODS


def is_pool(node: fx.Node, module: nn.Module | None = None) -> bool:
    """Return whether a channelwise node joins neighbours in the last two dimensions."""
    return isinstance(module, _POOL_MODULES) or node.target in _POOL_FUNCTIONS


def is_flatten(node: fx.Node, module: nn.Module | None = None) -> bool:
    """Return whether a node makes [N, C * H * W] of images [N, C, H, W]."""
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    return _named(node) == "flatten" and (*node.args[1:], *node.kwargs.values()) == (1,)


def is_pixel_mean(node: fx.Node) -> bool:
    """Return whether a node takes the mean over the pixels of [N, C, H, W]."""
    options: dict[str, Any] = {"dim": node.args[1] if len(node.args) > 1 else None, **node.kwargs}
    return _named(node) == "mean" and options["dim"] in _PIXELS


def _named(node: fx.Node) -> str | None:
    """Return the name of a tensor's method that a node calls as method or function of torch."""
    if node.op == "call_method":
        return str(node.target)
    if node.op == "call_function" and node.target in (torch.flatten, torch.mean):
        return node.target.__name__
    return None
