"""Batch norms folded into the convolutions before them, for networks that are only used.

Source: Jacob et al. 2018, section 3.2. A norm after an addition, as the first one of a
pre-activation block, has no convolution to go into and stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.modules import SparseConv2d

Pair = tuple[str, str]


def foldable(model: nn.Module) -> list[Pair]:
    """Return the names of a dense model's convolutions that only a batch norm reads, and of it.

    A model whose forward cannot be traced has none.
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except (TypeError, ValueError, fx.proxy.TraceError):
        return []
    modules, found = dict(model.named_modules()), []
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        names = str(source.target), str(node.target)
        kinds = type(modules[names[0]]), type(modules[names[1]])
        if kinds == (nn.Conv2d, nn.BatchNorm2d) and len(source.users) == 1:
            found.append(names)
    return found


@torch.no_grad()
def fold(model: nn.Module, pairs: Sequence[Pair]) -> nn.Module:
    """Fold the norms of `foldable` into a model in eval mode, dense or sparse, in place."""
    for name, norm in pairs:
        layer = model.get_submodule(name)
        sparse = isinstance(layer, SparseLayer)
        folded = fuse_conv_bn_eval(layer.to_dense() if sparse else layer, model.get_submodule(norm))
        if sparse:
            folded = SparseConv2d.from_dense(folded, layout=layer.layout)
        model.set_submodule(name, folded)
        model.set_submodule(norm, nn.Identity())
    return model
