"""What a model stores, layer by layer: blocks, density, weights and bytes."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sparse_engine.errors import warn_renamed
from sparse_engine.layers.attention import INPUTS, input_weights
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.candidates import CUT_UP, check_shapes, skip_reasons
from sparse_engine.layers.dense_kinds import is_dense_kind, planned
from sparse_engine.layers.few_blocks import few_blocks_note
from sparse_engine.layers.modules import SparseLinear
from sparse_engine.shards import kind_of
from sparse_engine.tables import format_table
from sparse_kernels.layout import Taps, group_size

# What of a pair of channel blocks is stored or absent as one.
TOGETHER = {"each": "", "row": " row of taps", "all": " all taps"}


@dataclass(frozen=True)
class LayerRow:
    """One convolution or linear layer, or an nn.MultiheadAttention's packed weight.

    slots: blocks there is memory for; stored_bytes: of the weight, and of a sparse layer's lists
    of blocks, which are index_bytes of them; note: why a layer is skipped; taps: "each", "row" or
    "all"; runs_on: the backend its first forward ran on, with a remark if the input had to be
    copied or only the weight was read; "-" before.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    block: tuple[int, int] | None
    active: int
    slots: int
    total: int
    weights: int
    dense_weights: int
    stored_bytes: int
    note: str = ""
    taps: Taps = "each"
    runs_on: str = "dense"
    index_bytes: int = 0

    @property
    def density(self) -> float:
        """Weights in active blocks / all weights; 1 for a dense layer."""
        return self.weights / self.dense_weights if self.dense_weights else 1.0

    @property
    def group(self) -> int:
        """Blocks that are stored or absent together: 1 where `taps` are of no effect."""
        return group_size(self.shape, self.taps)

    @property
    def all_taps(self) -> bool:
        """Whether a block spans all taps of a kernel; its earlier name, `taps` says more."""
        warn_renamed("LayerRow.all_taps", "LayerRow.taps == 'all'")
        return self.taps == "all" and self.group > 1


@dataclass(frozen=True)
class Report:
    """Rows in the order of the model; str() is a table.

    other_parameters, other_bytes: everything else, such as biases, norms and embeddings.
    experts: names of parameters among these that hold the weights of several experts.
    """

    rows: tuple[LayerRow, ...]
    other_parameters: int = 0
    other_bytes: int = 0
    experts: tuple[str, ...] = ()

    @property
    def density(self) -> float:
        """Weights in active blocks / weights of the dense network, skipped layers left out."""
        counted = [row for row in self.rows if not row.note]
        return sum(r.weights for r in counted) / max(1, sum(r.dense_weights for r in counted))

    @property
    def stored_bytes(self) -> int:
        """Bytes of all rows' weights as stored, lists of blocks included."""
        return sum(row.stored_bytes for row in self.rows)

    @property
    def index_bytes(self) -> int:
        """Bytes of all lists of blocks, which are part of stored_bytes."""
        return sum(row.index_bytes for row in self.rows)

    def __str__(self) -> str:
        names = ("layer", "kind", "shape", "block", "blocks", "density", "weights", "bytes")
        weights = sum(row.weights for row in self.rows)
        table = [
            (*names, "of lists", "runs on"),
            *(_cells(row) for row in self.rows),
            (
                *("total", *[""] * 4, f"{self.density:.3f}", f"{weights}"),
                *(f"{self.stored_bytes}", f"{self.index_bytes}", ""),
            ),
            ("all else", *[""] * 5, f"{self.other_parameters}", f"{self.other_bytes}", "", ""),
        ]
        lines = [format_table(table)]
        if note := few_blocks_note(self.rows):
            lines.append(note)
        if self.experts:
            lines.append(
                f"{', '.join(self.experts)}: the weights of several experts in one parameter stay "
                "dense; make each expert's layers nn.Linear to have them sparse"
            )
        return "\n".join(lines)


def report(model: nn.Module, skipped: Mapping[str, str] | None = None) -> Report:
    """Return a row for every convolution and linear layer of a model, sparse or not.

    Args:
        model: any nn.Module, wrapped or not.
        skipped: reasons by layer name, which leave a layer out of the density; found anew unless
            given.

    Raises:
        InputError: a lazily built layer has no shape yet.
    """
    check_shapes(model)
    notes = skip_reasons(model) if skipped is None else skipped
    # What FSDP2 has cut up meanwhile was no reason to leave a layer dense.
    notes = {name: note for name, note in notes.items() if note != CUT_UP}
    rows, listed = [], set()
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            rows.append(_sparse_row(name, module))
            listed.add(id(module.values))
        elif is_dense_kind(module):
            kind, weight = kind_of(module).__name__, planned(module, module.weight)
            rows.append(_dense_row(name, kind, weight, notes.get(name, "")))
            listed.add(id(module.weight))
        elif isinstance(module, nn.MultiheadAttention):
            prefix = f"{name}." if name else ""
            for parameter, weight in input_weights(module):
                place = prefix + parameter
                # One that was skipped had a name of its own meanwhile.
                note = notes.get(place) or notes.get(f"{prefix}{INPUTS[0]}", "")
                rows.append(_dense_row(place, "MultiheadAttention", weight, note))
                listed.add(id(weight))
    others = [p for p in model.parameters() if id(p) not in listed]
    size = sum(p.numel() * p.element_size() for p in others)
    experts = tuple(_fused_experts(model))
    return Report(tuple(rows), sum(p.numel() for p in others), size, experts)


def _fused_experts(model: nn.Module) -> Iterator[str]:
    """Yield the names of parameters [E, O, C] of modules that call themselves experts."""
    for name, module in model.named_modules():
        if "expert" in f"{name}.{type(module).__name__}".lower() and not isinstance(
            module, SparseLayer | nn.Conv1d
        ):
            for own, parameter in module.named_parameters(name, recurse=False):
                if parameter.ndim == 3:
                    yield own


def _sparse_row(name: str, layer: SparseLayer) -> LayerRow:
    layout, weights = layer.layout, layer.layout.active_weights
    stored = layer.values.nbytes + layer.index_bytes
    dense = math.prod(layout.shape)
    shape = layout.shape[:2] if isinstance(layer, SparseLinear) else layout.shape
    kind = kind_of(layer).__name__
    counts = (layout.active, layout.slots, layout.total, weights, dense, stored)
    runs_on = layer.ran_on or "-"
    how = ("", layer.taps, runs_on, layer.index_bytes)
    return LayerRow(name, kind, shape, layer.block, *counts, *how)


def _dense_row(name: str, kind: str, weight: Tensor, note: str) -> LayerRow:
    count, stored = weight.numel(), weight.numel() * weight.element_size()
    return LayerRow(name, kind, tuple(weight.shape), None, 1, 1, 1, count, count, stored, note)


def _cells(row: LayerRow) -> tuple[str, ...]:
    kind = f"{row.kind} ({row.note})" if row.note else row.kind
    block = blocks = "-"
    if row.block is not None:
        is_of_effect = row.taps == "each" or row.group > 1
        words = TOGETHER[row.taps] if is_of_effect else f" ({row.taps}: no effect)"
        block = "x".join(map(str, row.block)) + words
        spare = f"+{row.slots - row.active} spare" if row.slots > row.active else ""
        blocks = f"{row.active}{spare}/{row.total}"
    shape, numbers = "x".join(map(str, row.shape)), (row.weights, row.stored_bytes, row.index_bytes)
    cells = (row.name, kind, shape, block, blocks, f"{row.density:.3f}")
    return (*cells, *map(str, numbers), row.runs_on)
