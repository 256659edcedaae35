"""Sparse training that is really faster: modules, topology updates and ticket ensembles.

Names are imported when first used, so that `--help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_engine.convert import dense_state_dict, densify, sparsify
    from sparse_engine.dynamic import DynamicSparsity
    from sparse_engine.ensemble import TicketEnsemble
    from sparse_engine.fused_networks import fuse
    from sparse_engine.grouping import group
    from sparse_engine.modules import SparseConv2d, SparseLinear
    from sparse_engine.plots import draw_blocks
    from sparse_engine.rows import orders, to_rows
    from sparse_engine.summary import report

__version__ = "0.1.0"

_HOMES = {
    "DynamicSparsity": "dynamic",
    "SparseConv2d": "modules",
    "SparseLinear": "modules",
    "TicketEnsemble": "ensemble",
    "dense_state_dict": "convert",
    "densify": "convert",
    "draw_blocks": "plots",
    "fuse": "fused_networks",
    "group": "grouping",
    "orders": "rows",
    "report": "summary",
    "sparsify": "convert",
    "to_rows": "rows",
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
