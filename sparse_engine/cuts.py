"""Actions that cut a network into other blocks, or put its channels in order first.

Imports torch when they run.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparse_engine.actions import Action

if TYPE_CHECKING:
    from torch import nn

    from sparse_engine.channel_order import ChannelOrder
    from sparse_engine.regroup import Targets
    from sparse_engine.trainer import Trainer


@dataclass(frozen=True)
class Regroup(Action):
    """Order the channels of a dense network, and of kept states, for a pruning (see regroup.py)."""

    sparsity: float

    def __call__(self, run: Trainer) -> None:
        """Permute weights, momenta and all else, in place."""
        from sparse_engine.pruning import strongest_layouts

        network = run.network
        layouts = strongest_layouts(network.model, self.sparsity, run.config)
        order = _order_for(run, network.model, layouts)
        order.apply_(network.model, network.optimizer)
        for kept in run.kept.values():
            kept["model"] = order.state(kept["model"])


@dataclass(frozen=True)
class Prune(Action):
    """Keep the strongest blocks of the network, exactly to a sparsity (see pruning.py)."""

    sparsity: float

    def __call__(self, run: Trainer) -> None:
        """Replace the layers; optimizer state of the blocks that stay is carried over."""
        from sparse_engine.pruning import strongest_layouts
        from sparse_engine.recut import recut

        model = run.network.model
        layouts = strongest_layouts(model, self.sparsity, run.config)
        run.network.replace_layers(recut(model, layouts))

    def sparsity_after(self, sparsity: float, kept: dict[str, float]) -> float:
        """Return the target."""
        return self.sparsity


@dataclass(frozen=True)
class CutAsTeacher(Action):
    """Keep the blocks of the network that are the strongest in its teacher; values stay.

    regroup: first order its channels as suits the teacher, which answers as before.
    """

    sparsity: float
    regroup: bool = False

    def __call__(self, run: Trainer) -> None:
        """Replace the layers."""
        from sparse_engine.pruning import strongest_layouts
        from sparse_engine.recut import recut

        network, teacher = run.network, run.teacher.models[0]
        layouts = strongest_layouts(teacher, self.sparsity, run.config)
        if self.regroup:
            order, teacher = _order_for(run, teacher, layouts), copy.deepcopy(teacher)
            order.apply_(network.model, network.optimizer)
            order.apply_(teacher)
            layouts = strongest_layouts(teacher, self.sparsity, run.config)
        network.replace_layers(recut(network.model, layouts))

    def sparsity_after(self, sparsity: float, kept: dict[str, float]) -> float:
        """Return the target."""
        return self.sparsity


def _order_for(run: Trainer, model: nn.Module, targets: Targets) -> ChannelOrder:
    """Return the order of a model's channels that suits blocks best, in all processes the same."""
    from tqdm import tqdm

    from sparse_engine.regroup import find_order

    if not run.world.is_first:
        return run.world.of_first(None)
    found = find_order(model, targets)
    if found.after:
        before, after = (sum(kept.values()) / len(kept) for kept in (found.before, found.after))
        tqdm.write(f"regrouped: best blocks keep {after:.4f} of the L1 norm, {before:.4f} before")
    return run.world.of_first(found.order)
