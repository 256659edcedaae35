"""The settings of sparsity: how many blocks, where, and how they change. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparse_engine.config.run_settings import setting
from sparse_engine.layers.blocks import LayerBlocks
from sparse_engine.sparsity.erdos_renyi import ErdosRenyi
from sparse_engine.sparsity.update_schedule import UPDATE_RULES

# Settings of which each may decide the densities anew, in place of those in a file.
BUDGET = (
    *("distribution", "erk_power", "time_budget", "match", "sparsity"),
    *("model", "block", "layer_blocks", "taps"),
)


@dataclass(frozen=True)
class SparsitySettings:
    """A network's density by layer, its blocks, and what updates them."""

    sparsity: float | None = setting(
        "sparsity", "share of weights that is absent, in [0, 1)", kind=float, least=0, most=0.999999
    )
    block: str | None = setting("sparsity", "BOxBC, 1x1 for unstructured, or auto", kind=str)
    layer_blocks: Mapping[str, str] | None = setting(
        "sparsity",
        "JSON object, pattern of layer names: BOxBC, auto, or dense (full, counts in the budget); "
        "the first that matches, others have --block",
        kind=dict,
    )
    taps: str = setting(
        "sparsity",
        "a block's taps are stored or absent each by itself, or all together",
        "each",
        kind=str,
        choices=("each", "all"),
    )
    distribution: str = setting(
        "sparsity",
        "layer densities; timed spends --time-budget by measured times",
        "erk",
        kind=str,
        choices=("erk", "er", "uniform", "timed"),
    )
    erk_power: float = setting(
        "sparsity",
        "erk and er: power of the densities, 0 uniform, above 1 less in wide layers",
        1.0,
        kind=float,
        least=0,
        most=10,
    )
    time_budget: float | None = setting(
        "sparsity",
        "timed: seconds of all sparsifiable convolutions and linear layers, forward and gradients, "
        "over those of the dense ones; sparsity is a result",
        kind=float,
        above=0,
        most=1,
    )
    match: str = setting(
        "sparsity",
        "what --sparsity S counts: weights, test FLOPs or measured layer time are 1 - S of dense",
        "params",
        kind=str,
        choices=("params", "flops", "time"),
    )
    densities: Mapping[str, float] | None = setting(
        "sparsity", "JSON object, density by layer name: what timed decided in a run", kind=dict
    )
    start: str = setting(
        "sparsity",
        "first blocks; snip and grasp choose them, and the layer densities, from a few batches",
        "random",
        kind=str,
        choices=("random", "snip", "grasp"),
    )
    weight_init: str = setting(
        "sparsity",
        "weights of sparse layers as drawn for dense ones, or by active fan-in of each channel",
        "dense",
        kind=str,
        choices=("dense", "fan-in"),
    )
    topology: str | None = setting(
        "sparsity", "update rule of ensembles", kind=str, choices=UPDATE_RULES
    )
    start_sparsity: float | None = setting(
        "sparsity",
        "granet begins with this sparsity and prunes to --sparsity [0.5]",
        kind=float,
        least=0,
        most=0.999999,
    )
    prune_scope: str | None = setting(
        "sparsity",
        "pruning ranks all blocks together, or those of each layer [1x1 global, else layer]",
        kind=str,
        choices=("global", "layer"),
    )
    update_interval: int | None = setting(
        "sparsity", "steps between topology updates [scales with the run]", kind=int, least=1
    )
    drop: float | None = setting(
        "sparsity", "share of active blocks an update replaces", kind=float, above=0, most=1
    )
    drop_schedule: str | None = setting(
        "sparsity", "of the drop rate", kind=str, choices=("constant", "cosine")
    )
    stop: float | None = setting(
        "sparsity",
        "share of a phase that saves a ticket after which topology is fixed",
        kind=float,
        above=0,
        most=1,
    )

    @property
    def blocks(self) -> LayerBlocks:
        """What each layer is cut into: --layer-blocks, and for all others --block."""
        named, others = self.layer_blocks or {}, self.block or "1x1"
        return {**named, "*": named.get("*", others)} if named else others

    @property
    def layer_densities(self) -> str | ErdosRenyi | Mapping[str, float]:
        """What spreads a sparsity over the layers: what was decided, or a distribution."""
        if self.erk_power != 1:
            return ErdosRenyi(self.distribution == "erk", self.erk_power)
        return self.densities or self.distribution
