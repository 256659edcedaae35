"""Averages of a network whose blocks change: EMA, SWA, mean teachers.

An average of `values` slot by slot means something only where both networks have the same block in
a slot. So an average has the blocks of its network, always: when these change, it keeps the means
of blocks that stay, and blocks that come begin from zero, as in the network. It then is the average
of dense weights, on the present blocks.
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.shards import all_rows, modules_of_kind, own_part, write_


class Averages:
    """The averages of a network's weights that have its blocks."""

    def __init__(self, layers: Mapping[str, SparseLayer], models: Sequence[nn.Module]) -> None:
        """Let averages have a network's blocks from now on.

        Args:
            layers: the network's sparse layers by name.
            models: copies of the network, wrapped or not: an AveragedModel, the `.module` of
                timm's EMA classes, a copy.deepcopy.

        Raises:
            InputError: a model has other layers.
        """
        self._layers, self._warned = layers, False
        # Such a model may hold whole copies of its parameters since it was last run.
        self._cut = [m for model in models for m in modules_of_kind(model, "FSDPModule")]
        self._pairs: list[tuple[SparseLayer, SparseLayer]] = []
        for number, model in enumerate(models):
            own = [m for m in model.modules() if isinstance(m, SparseLayer)]
            if [m.values.shape for m in own] != [m.values.shape for m in layers.values()]:
                raise InputError(
                    f"averages[{number}] has other sparse layers than the model: give an average "
                    "that is a copy of it, made after sparsify"
                )
            self._pairs += zip(layers.values(), own)
        self._named = {id(own) for _, own in self._pairs}
        for layer, own in self._pairs:
            own.follow_blocks_of(layer)
        self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        """Give the averages the network's present blocks, and the means of those that stay."""
        for module in self._cut:
            module.reshard()
        for layer, own in self._pairs:
            before, total = own.layout.block_ids.long(), own.layout.total
            ids = layer.layout.block_ids.to(before.device)
            slots = torch.arange(len(before), device=before.device)
            place = torch.full((total + 1,), -1, device=before.device)
            # The last element is that of unused slots, which hold zeros anyway.
            place = place.index_copy(0, before, slots).index_select(0, ids)
            means = all_rows(own_part(own.values), own.values)
            kept = means.index_select(0, place.clamp(min=0))
            write_(own.values, kept.masked_fill((place < 0)[:, None, None], 0))
            own.change_blocks_(ids, layer.layout.active)

    def warn_of_others(self) -> None:
        """Warn once if a copy of the network that is no average by name seems to be one.

        Called before blocks change. A copy seems to be an average if it has the network's blocks,
        has been written to since it was made, and has neither a gradient nor a rule of its own.
        """
        for name, layer in self._layers.items() if not self._warned else ():
            for copy in layer.copies or ():
                if id(copy) not in self._named and _seems_an_average(copy, layer):
                    self._warned = True
                    warnings.warn(
                        f"the blocks of layer '{name}' change, and a copy of the network that is "
                        "being written to does not hear of it: if it is an average (EMA, SWA, a "
                        "mean teacher), name it in DynamicSparsity(averages=[...])",
                        stacklevel=4,  # the loop that calls step()
                    )
                    return


def _seems_an_average(copy: SparseLayer, layer: SparseLayer) -> bool:
    if copy.is_updated or copy.values.grad is not None or not copy.has_changed:
        return False
    # Numbers on a GPU would be a wait.
    return copy.block_ids.is_cuda or copy.block_ids.equal(layer.block_ids)
