"""Sparse training that is really faster: modules, topology updates and ticket ensembles.

Names are imported when first used, so that `--help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_engine.evaluation.plots import draw_blocks
    from sparse_engine.layers.modules import SparseConv2d, SparseLinear
    from sparse_engine.layers.report import report
    from sparse_engine.layers.rows import orders, to_rows
    from sparse_engine.models.fused import fuse
    from sparse_engine.models.grouped.group import group
    from sparse_engine.runs.ensemble import TicketEnsemble
    from sparse_engine.sparsity.dynamic import DynamicSparsity
    from sparse_engine.sparsity.sparsify import dense_state_dict, densify, sparsify

__version__ = "0.1.0"

_HOMES = {
    "DynamicSparsity": "sparsity.dynamic",
    "SparseConv2d": "layers.modules",
    "SparseLinear": "layers.modules",
    "TicketEnsemble": "runs.ensemble",
    "dense_state_dict": "sparsity.sparsify",
    "densify": "sparsity.sparsify",
    "draw_blocks": "evaluation.plots",
    "fuse": "models.fused",
    "group": "models.grouped.group",
    "orders": "layers.rows",
    "report": "layers.report",
    "sparsify": "sparsity.sparsify",
    "to_rows": "layers.rows",
}

__all__ = [
    "DynamicSparsity",
    "SparseConv2d",
    "SparseLinear",
    "TicketEnsemble",
    "dense_state_dict",
    "densify",
    "draw_blocks",
    "fuse",
    "group",
    "orders",
    "report",
    "sparsify",
    "to_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sparse_engine' has no attribute '{name}'")
    found = getattr(importlib.import_module(f"sparse_engine.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
