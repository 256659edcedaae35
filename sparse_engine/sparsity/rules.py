"""The rules of topology updates, each with the score of the blocks that could grow.

Sources: SET, Mocanu et al. 2018; SNFS, Dettmers & Zettlemoyer 2019; RigL, Evci et al. 2020; GraNet,
Liu et al. 2021 (Boosting Pruning Plasticity).

SNFS in its paper keeps a momentum of the dense gradient, updated in every step. Here a block's
score is a momentum of the gradient's norm: one number a block, over the last steps before an
update. So gradients that point to and fro do not cancel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.layers.base import SparseLayer
from sparse_engine.sparsity.update_schedule import UpdateRule

GrowScore = Callable[[SparseLayer, torch.Generator], Tensor]


def random_score(layer: SparseLayer, generator: torch.Generator) -> Tensor:
    """Score blocks at random (SET)."""
    return torch.rand(layer.layout.total, generator=generator, device=layer.layout.device)


def gradient_score(layer: SparseLayer, generator: torch.Generator) -> Tensor:
    """Score blocks by norms of the dense weight's gradients (RigL; SNFS over some steps)."""
    scores = layer.stop()
    if scores is None:
        raise RuntimeError(
            "no gradient reached a sparse layer since the last step: "
            "call backward() before each update, through every sparse layer"
        )
    return scores


@dataclass(frozen=True)
class Rule:
    """What distinguishes the rules: how blocks to grow are scored, None to change nothing.

    gradient_steps: how many steps up to an update collect dense gradients.
    memory: factor of the gradients of each step before.
    """

    grow_score: GrowScore | None
    gradient_steps: int = 0
    memory: float = 1.0


# SNFS: what is more than 44 steps old would have less than 1 % of the weight of the last step.
RULES: dict[UpdateRule, Rule] = {
    "static": Rule(None),
    "set": Rule(random_score),
    "rigl": Rule(gradient_score, 1),
    "snfs": Rule(gradient_score, 44, 0.9),
    "granet": Rule(gradient_score, 1),
}
