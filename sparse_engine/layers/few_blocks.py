"""Networks that are left so few blocks that outputs are constants wherever the blocks lie."""

from collections.abc import Iterable
from typing import Protocol

# The share of all outputs that is told of: a single small layer is not worth a line.
TOLD_FROM = 0.1


class Blocks(Protocol):
    """How many of a layer's blocks are active, such as a LayerPlan or a LayerRow.

    shape: of the weight, (O, C, ...); block: (BO, BC), None if the layer is dense; group: blocks
    that are active or absent together.
    """

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def block(self) -> tuple[int, int] | None: ...
    @property
    def active(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def group(self) -> int: ...


def fewest_empty_outputs(layer: Blocks) -> int:
    """Return how many outputs of a layer have no block, wherever its blocks lie.

    Blocks of one row feed the same output channels; without any, these are constants.
    """
    if layer.block is None:
        return 0
    return max(0, layer.shape[0] - layer.block[0] * (layer.active // layer.group))


def few_blocks_note(layers: Iterable[Blocks]) -> str | None:
    """Return a line for a network in whose layers a tenth of all outputs, or more, has no block."""
    sparse = [layer for layer in layers if layer.active < layer.total]
    empty = {layer.name: fewest_empty_outputs(layer) for layer in sparse}
    outputs = {layer.name: layer.shape[0] for layer in sparse}
    if not sparse or sum(empty.values()) < TOLD_FROM * sum(outputs.values()):
        return None
    worst = max(empty, key=lambda name: empty[name] / outputs[name])
    grouped = any(layer.group > 1 for layer in sparse if empty[layer.name])
    return (
        f"at least {sum(empty.values())} of {sum(outputs.values())} outputs of sparse layers are "
        f"constants, for there are too few blocks ({worst}: {empty[worst]} of {outputs[worst]}): "
        f"use {'taps each by itself, ' * grouped}smaller blocks or a lower sparsity"
    )
