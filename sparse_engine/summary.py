"""What a model stores, layer by layer: blocks, density, weights and bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sparse_engine.layer import SparseLayer
from sparse_engine.modules import SparseConv2d
from sparse_kernels.reference import scatter_blocks


@dataclass(frozen=True)
class LayerRow:
    """One convolution or linear layer.

    note: why a layer is skipped; runs_on: the backend its first forward ran on, with a remark if
    the input had to be copied; "-" before.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    block: tuple[int, int] | None
    active: int
    total: int
    weights: int
    dense_weights: int
    stored_bytes: int
    note: str = ""
    all_taps: bool = False
    runs_on: str = "dense"

    @property
    def density(self) -> float:
        """Active blocks / all blocks; 1 for a dense layer."""
        return self.active / self.total


@dataclass(frozen=True)
class Report:
    """Rows in the order of the model; str() is a table."""

    rows: tuple[LayerRow, ...]

    @property
    def density(self) -> float:
        """Weights in active blocks / weights of the dense network, skipped layers left out."""
        counted = [row for row in self.rows if not row.note]
        return sum(r.weights for r in counted) / max(1, sum(r.dense_weights for r in counted))

    @property
    def stored_bytes(self) -> int:
        """Bytes of all rows' weights as stored."""
        return sum(row.stored_bytes for row in self.rows)

    def __str__(self) -> str:
        table = [
            ("layer", "kind", "shape", "block", "blocks", "density", "weights", "bytes", "runs on")
        ]
        for row in self.rows:
            block = "x".join(map(str, row.block)) if row.block else "-"
            block += " all taps" if row.all_taps else ""
            table.append(
                (
                    row.name,
                    f"{row.kind} ({row.note})" if row.note else row.kind,
                    "x".join(map(str, row.shape)),
                    block,
                    f"{row.active}/{row.total}" if row.block else "-",
                    f"{row.density:.3f}",
                    f"{row.weights}",
                    f"{row.stored_bytes}",
                    row.runs_on,
                )
            )
        weights = sum(row.weights for row in self.rows)
        total = ("total", "", "", "", "", f"{self.density:.3f}", f"{weights}")
        table.append((*total, f"{self.stored_bytes}", ""))
        return format_table(table)


def report(model: nn.Module, skipped: Mapping[str, str] | None = None) -> Report:
    """Return a row for every convolution and linear layer of a model, sparse or not.

    Args:
        model: any nn.Module.
        skipped: reasons by layer name, which leave a layer out of the density.
    """
    rows = []
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            rows.append(_sparse_row(name, module))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            rows.append(_dense_row(name, module, (skipped or {}).get(name, "")))
    return Report(tuple(rows))


def format_table(rows: list[tuple[str, ...]]) -> str:
    """Return rows of cells as aligned columns, the first two to the left, the rest to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _sparse_row(name: str, layer: SparseLayer) -> LayerRow:
    layout = layer.layout
    # Booleans are counted exactly, whatever the dtype and device of the values.
    ones = torch.ones(layer.values.shape, dtype=torch.bool, device=layout.device)
    weights = int(scatter_blocks(ones, layout.tensors(), layout.sizes()).sum())
    stored = layer.values.numel() * layer.values.element_size()
    dense = math.prod(layout.shape)
    shape = layout.shape if isinstance(layer, SparseConv2d) else layout.shape[:2]
    kind = type(layer).__name__
    counts = (layout.active, layout.total, weights, dense, stored)
    runs_on = layer.ran_on or "-"
    every = layout.group > 1
    return LayerRow(name, kind, shape, layer.block, *counts, all_taps=every, runs_on=runs_on)


def _dense_row(name: str, module: nn.Module, note: str) -> LayerRow:
    weight = module.weight
    count, stored = weight.numel(), weight.numel() * weight.element_size()
    kind = type(module).__name__
    return LayerRow(name, kind, tuple(weight.shape), None, 1, 1, count, count, stored, note)
