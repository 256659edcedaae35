"""A method is one record: its phases, and what else the rest of the program asks of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sparse_engine.config.config import Config
from sparse_engine.layers.blocks import DENSE
from sparse_engine.methods.phase import Phase
from sparse_engine.methods.recipes import Recipe

Phases = Callable[[Config, int, float], list[Phase]]
CHOSEN = "chosen"


@dataclass(frozen=True)
class Method:
    """One training method.

    phases: from the resolved configuration, the steps of the run, and the share of them over
        which the learning rate rises.
    rule: what its topology is updated by: "dense", "static", a rule, or CHOSEN: --topology.
    starts_dense: whether the network is dense first, and pruned.
    usual_sparsity: where nobody says otherwise; 0 is a dense method.
    least_members: of methods that take --members; None where one network is trained.
    usual_members: None as the recipe of the data set says.
    independent: whether members could be trained apart from each other.
    runs: its length in single runs, of the recipe's epochs.
    epochs: its length in epochs, where that is no multiple of a run's.
    options: settings that only some methods have, and what they are when nobody says.
    usual: settings that all methods have, and what they are here when nobody says.
    network: whose is no plain model: its name in runs/model.py.
    check: raises InputError for a resolved configuration that it cannot have.
    """

    phases: Phases
    rule: str = "static"
    starts_dense: bool = False
    usual_sparsity: float = 0.8
    least_members: int | None = None
    usual_members: int | None = None
    independent: bool = False
    runs: Callable[[Config], float] = lambda config: 1
    epochs: Callable[[Config, Recipe], int] | None = None
    options: Mapping[str, Any | Callable[[Config], Any]] = field(default_factory=dict)
    usual: Mapping[str, Any | Callable[[Config], Any]] = field(default_factory=dict)
    network: str | None = None
    check: Callable[[Config], None] = lambda config: None

    @property
    def has_dense_run(self) -> bool:
        """Whether a run of it is as long as the recipe's dense one."""
        return self.starts_dense or not self.usual_sparsity

    def rule_of(self, config: Config) -> str:
        """Return the rule of a configuration, RigL where it may choose and does not."""
        return (config.topology or "rigl") if self.rule == CHOSEN else self.rule

    def members_of(self, config: Config, usual: int) -> int:
        """Return how many tickets a configuration asks for."""
        if self.least_members is None:
            return config.members or 1
        return config.members or self.usual_members or usual


def in_single_weights(config: Config) -> bool:
    """Return whether all sparse layers are stored weight by weight, as the papers have them."""
    return {config.block, *(config.layer_blocks or {}).values()} - {DENSE} == {"1x1"}


def usual_scope(config: Config) -> str:
    """Return "global", as the papers rank, for single weights, and "layer" for blocks.

    A block's mean hides how its weights differ within a layer, so between layers their scale
    alone would decide: whole layers would fall to one block.
    """
    return "global" if in_single_weights(config) else "layer"
