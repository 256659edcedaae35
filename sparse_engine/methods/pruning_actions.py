"""Actions that prune a network, or put its channels in order first.

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

    from sparse_engine.sparsity.channel_permutation.permutation import ChannelPermutation
    from sparse_engine.sparsity.channel_permutation.search import Targets


@dataclass(frozen=True)
class PermuteChannels(Action):
    """Order the channels of a dense network, and of kept states, before a pruning."""

    sparsity: float

    def __call__(self, run: Run) -> None:
        """Permute weights, momenta and all else, in place."""
        permutation = _permutation_for(run, run.model, run.strongest(run.model, self.sparsity))
        run.permute(permutation)
        for kept in run.kept.values():
            kept["model"] = permutation.state(kept["model"])


@dataclass(frozen=True)
class Prune(Action):
    """Keep the strongest blocks of the network, exactly to a sparsity (see pruning.py)."""

    sparsity: float

    def __call__(self, run: Run) -> None:
        """Replace the layers; optimizer state of the blocks that stay is carried over."""
        from sparse_engine.layers.surgery import change_layouts

        run.replace_layers(change_layouts(run.model, run.strongest(run.model, self.sparsity)))

    def sparsity_after(self, sparsity: float, kept: dict[str, float]) -> float:
        """Return the target."""
        return self.sparsity


@dataclass(frozen=True)
class PruneLikeTeacher(Prune):
    """Keep the blocks of the network that are the strongest in its teacher; values stay.

    permute_channels: first order its channels as suits the teacher, which answers as before.
    """

    permute_channels: bool = False

    def __call__(self, run: Run) -> None:
        """Replace the layers."""
        from sparse_engine.layers.surgery import change_layouts

        teacher = run.teacher
        layouts = run.strongest(teacher, self.sparsity)
        if self.permute_channels:
            permutation, teacher = _permutation_for(run, teacher, layouts), copy.deepcopy(teacher)
            run.permute(permutation)
            permutation.apply_(teacher)
            layouts = run.strongest(teacher, self.sparsity)
        run.replace_layers(change_layouts(run.model, layouts))


def _permutation_for(run: Run, model: nn.Module, targets: Targets) -> ChannelPermutation:
    """Return the permutation that suits a model's blocks best, in all processes the same."""
    return run.agreed(lambda: _find_permutation(model, targets))


def _find_permutation(model: nn.Module, targets: Targets) -> ChannelPermutation:
    from tqdm import tqdm

    from sparse_engine.sparsity.channel_permutation.search import find_permutation

    best = find_permutation(model, targets)
    if best.after:
        before, after = (sum(kept.values()) / len(kept) for kept in (best.before, best.after))
        tqdm.write(
            f"channels permuted: best blocks keep {after:.4f} of the L1 norm, {before:.4f} before"
        )
    return best.permutation


def permutation_of(config: Config) -> tuple[Action, ...]:
    """Return what comes before the first pruning of a dense network.

    Channels are ordered for the blocks of the end: a network that has blocks keeps its order.
    """
    return (PermuteChannels(config.sparsity or 0.0),) if config.permute_channels else ()
