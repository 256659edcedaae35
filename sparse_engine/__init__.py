"""Sparse training that is really faster: modules, topology updates and ticket ensembles.

Names are imported when first used, so that `--help` does not wait for torch.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 10):  # noqa: UP036 (pip looks at it, a folder on the path does not)
    raise ImportError(f"sparse_engine needs Python 3.10 or newer, this is {sys.version.split()[0]}")

if TYPE_CHECKING:
    from sparse_engine.evaluation.plots import draw_blocks
    from sparse_engine.layers.ids.block_ids import refresh
    from sparse_engine.layers.initialisation import draw_by_fan_in
    from sparse_engine.layers.modules import SparseConv2d, SparseLinear
    from sparse_engine.layers.report import report
    from sparse_engine.layers.rows import orders, to_rows
    from sparse_engine.models.fused import fuse
    from sparse_engine.models.grouped.group import group
    from sparse_engine.models.grouped.members import GroupedMembers
    from sparse_engine.runs.ensemble import TicketEnsemble
    from sparse_engine.runs.exported import (
        load_safetensors,
        load_torch_export,
        save_safetensors,
        to_aten,
    )
    from sparse_engine.sparsity.dynamic import DynamicSparsity
    from sparse_engine.sparsity.erdos_renyi import ErdosRenyi
    from sparse_engine.sparsity.saliency import grasp_scores, snip_scores
    from sparse_engine.sparsity.sparsify import dense_state_dict, densify, sparsify
    from sparse_engine.training.group_topology import GroupTopology
    from sparse_engine.training.tuning import tune

__version__ = "0.1.0"

_HOMES = {
    "DynamicSparsity": "sparsity.dynamic",
    "ErdosRenyi": "sparsity.erdos_renyi",
    "GroupTopology": "training.group_topology",
    "GroupedMembers": "models.grouped.members",
    "SparseConv2d": "layers.modules",
    "SparseLinear": "layers.modules",
    "TicketEnsemble": "runs.ensemble",
    "dense_state_dict": "sparsity.sparsify",
    "densify": "sparsity.sparsify",
    "draw_blocks": "evaluation.plots",
    "draw_by_fan_in": "layers.initialisation",
    "fuse": "models.fused",
    "grasp_scores": "sparsity.saliency",
    "group": "models.grouped.group",
    "load_safetensors": "runs.exported",
    "load_torch_export": "runs.exported",
    "orders": "layers.rows",
    "refresh": "layers.ids.block_ids",
    "report": "layers.report",
    "save_safetensors": "runs.exported",
    "snip_scores": "sparsity.saliency",
    "sparsify": "sparsity.sparsify",
    "to_aten": "runs.exported",
    "to_rows": "layers.rows",
    "tune": "training.tuning",
}

__all__ = [
    "DynamicSparsity",
    "ErdosRenyi",
    "GroupTopology",
    "GroupedMembers",
    "SparseConv2d",
    "SparseLinear",
    "TicketEnsemble",
    "dense_state_dict",
    "densify",
    "draw_blocks",
    "draw_by_fan_in",
    "fuse",
    "grasp_scores",
    "group",
    "load_safetensors",
    "load_torch_export",
    "orders",
    "refresh",
    "report",
    "save_safetensors",
    "snip_scores",
    "sparsify",
    "to_aten",
    "to_rows",
    "tune",
]

_EARLIER = {"Together": "GroupedMembers"}
# Modules are found by their names of before there were rooms, too.
__path__.append(f"{__path__[0]}/earlier_names")


def __getattr__(name: str) -> Any:
    if name in _EARLIER:
        errors = importlib.import_module("sparse_engine.errors")
        errors.warn_renamed(f"sparse_engine.{name}", f"sparse_engine.{_EARLIER[name]}")
        return __getattr__(_EARLIER[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'sparse_engine' has no attribute '{name}'")
    from sparse_engine.installed import check_core

    check_core()
    found = getattr(importlib.import_module(f"sparse_engine.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
