"""EDST: M tickets from one run (FreeTickets, Liu et al. 2022, Alg. 3).

Exploration at the high learning rate, then M refinements at falling ones. Topology is updated
throughout the exploration and in each refinement; after each ticket but the last an escape
replaces the share q of all blocks. Other than in the paper, refinements begin at the high learning
rate again, and updates replace fewer blocks; on ImageNet as in the paper.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sparse_engine.config.config import Config
from sparse_engine.methods.actions import Escape, SaveTicket, StartMember
from sparse_engine.methods.freetickets import (
    DROP,
    IMAGENET,
    Schedule,
    refinement,
    schedule_for,
    topology_rule,
)
from sparse_engine.methods.learning_rate import LearningRate
from sparse_engine.methods.method import CHOSEN, Method
from sparse_engine.methods.phase import Phase, split_steps
from sparse_engine.methods.recipes import Recipe


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return exploration and M refinements."""
    members = config.members or 1
    schedule = schedule_for(config.dataset)
    lengths = split_steps(steps, [schedule.explore, *[schedule.refine] * members])
    topology = topology_rule(config, schedule.explore_interval * lengths[0], min(lengths))
    exploration = Phase(
        "explore",
        lengths[0],
        LearningRate(warmup=warmup * steps / lengths[0]),
        topology and replace(topology, stop=None),
        begin=(StartMember(config.sparsity or 0.0),),
    )
    refinements = [
        Phase(
            f"refine {number}",
            length,
            LearningRate(refinement(schedule, config.restart)),
            topology,
            end=(SaveTicket(), Escape(config.escape)) if number < members else (SaveTicket(),),
        )
        for number, length in enumerate(lengths[1:], 1)
    ]
    return [exploration, *refinements]


def epochs(config: Config, recipe: Recipe) -> int:
    """Return the epochs of exploration and refinements; the paper's shares where none are given."""
    usual = schedule_for(config.dataset)
    explore, refine = recipe.edst_epochs or (
        max(1, share * recipe.epochs // 250) for share in (usual.explore, usual.refine)
    )
    return explore + (config.members or 1) * refine


def _but_on_imagenet(value: Any, papers: Callable[[Schedule], Any]) -> Callable[[Config], Any]:
    """Return a default: `value`, and on ImageNet, where nothing else was tried, the paper's.

    With the paper's rates half of the weights were dropped again before they had grown, and
    refinements did not bring back what escapes had taken (docs/results/full-length.md).
    """

    def usual(config: Config) -> Any:
        schedule = schedule_for(config.dataset)
        return papers(schedule) if schedule is IMAGENET else value

    return usual


METHOD = Method(
    phases,
    rule=CHOSEN,
    least_members=1,
    epochs=epochs,
    options={"escape": 0.8, "restart": _but_on_imagenet(1.0, lambda s: s.refinement[0][1])},
    usual={
        "drop": _but_on_imagenet(0.3, lambda _: DROP),
        "drop_schedule": _but_on_imagenet("cosine", lambda s: s.drop_schedule),
    },
)
