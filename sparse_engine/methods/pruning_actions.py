"""Actions that cut a network into other blocks, or put its channels in order first.

Imports torch when they run.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparse_engine.config.config import Config
from sparse_engine.methods.actions import Action, Run

if TYPE_CHECKING:
    from torch import nn

    from sparse_engine.sparsity.channel_permutation.permutation import ChannelOrder
    from sparse_engine.sparsity.channel_permutation.search import Targets


@dataclass(frozen=True)
class Regroup(Action):
    """Order the channels of a dense network, and of kept states, for a pruning (see regroup.py)."""

    sparsity: float

    def __call__(self, run: Run) -> None:
        """Permute weights, momenta and all else, in place."""
        order = _order_for(run, run.model, run.strongest(run.model, self.sparsity))
        run.permute(order)
        for kept in run.kept.values():
            kept["model"] = order.state(kept["model"])


@dataclass(frozen=True)
class Prune(Action):
    """Keep the strongest blocks of the network, exactly to a sparsity (see pruning.py)."""

    sparsity: float

    def __call__(self, run: Run) -> None:
        """Replace the layers; optimizer state of the blocks that stay is carried over."""
        from sparse_engine.layers.surgery import recut

        run.replace_layers(recut(run.model, run.strongest(run.model, self.sparsity)))

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

    def __call__(self, run: Run) -> None:
        """Replace the layers."""
        from sparse_engine.layers.surgery import recut

        teacher = run.teacher
        layouts = run.strongest(teacher, self.sparsity)
        if self.regroup:
            order, teacher = _order_for(run, teacher, layouts), copy.deepcopy(teacher)
            run.permute(order)
            order.apply_(teacher)
            layouts = run.strongest(teacher, self.sparsity)
        run.replace_layers(recut(run.model, layouts))

    def sparsity_after(self, sparsity: float, kept: dict[str, float]) -> float:
        """Return the target."""
        return self.sparsity


def _order_for(run: Run, model: nn.Module, targets: Targets) -> ChannelOrder:
    """Return the order of a model's channels that suits blocks best, in all processes the same."""
    return run.agreed(lambda: _found_order(model, targets))


def _found_order(model: nn.Module, targets: Targets) -> ChannelOrder:
    from tqdm import tqdm

    from sparse_engine.sparsity.channel_permutation.search import find_order

    found = find_order(model, targets)
    if found.after:
        before, after = (sum(kept.values()) / len(kept) for kept in (found.before, found.after))
        tqdm.write(f"regrouped: best blocks keep {after:.4f} of the L1 norm, {before:.4f} before")
    return found.order


def regrouping(config: Config) -> tuple[Action, ...]:
    """Return what comes before the first pruning of a dense network.

    Channels are ordered for the blocks of the end: a network that has blocks keeps its order.
    """
    return (Regroup(config.sparsity or 0.0),) if config.regroup else ()
