"""The settings of a run: one frozen dataclass, whose fields are also flags. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sparse_engine.blocks import LayerBlocks
from sparse_engine.criteria import FAN_INS, SCORES, Criteria
from sparse_engine.erdos_renyi import ErdosRenyi
from sparse_engine.run_settings import RunSettings, setting
from sparse_engine.update_schedule import UPDATE_RULES

# Settings of which each may decide the densities anew, in place of those in a file.
BUDGET = (
    *("distribution", "erk_power", "time_budget", "match", "sparsity"),
    *("model", "block", "layer_blocks", "taps"),
)
# Settings that say where and how to run, not what: they are not part of a saved configuration.
TRANSIENT = ("out", "resume", "config", "dry_run", "download", "scale", "tune")
# A resumed run may move to other hardware and other paths, and nothing else may change.
MOVABLE = (
    "data_dir",
    "teacher",
    "device",
    "backend",
    "cuda_graph",
    "fuse",
    "compile",
    "checkpoint_every",
    "timeout",
    "workers",
    "download",
    "resume",
)


@dataclass(frozen=True)
class Config(RunSettings):
    """Everything a run depends on. None means: as the recipe of the data set says."""

    dataset: str = setting(
        "data", "name, imagefolder:PATH, or NAME of DATA_DIR/NAME.npz", "digits", kind=str
    )
    data_dir: str | None = setting("data", "folder with the data", kind=str)
    download: bool = setting("data", "fetch the data through torchvision", False, kind=bool)
    batch_size: int | None = setting("data", "images a step", kind=int, least=1)
    downsample_rate: float = setting(
        "data",
        "share of mini-batches with images of half the size",
        0.0,
        kind=float,
        least=0,
        most=0.99,
    )
    workers: int = setting("data", "loader processes (image folders)", 2, kind=int, least=0)
    select: str = setting(
        "data",
        "tickets: the last epoch, or the best on a validation split",
        "last",
        kind=str,
        choices=("last", "validation"),
    )
    validation: float = setting(
        "data", "share of training data for --select validation", 0.1, kind=float, above=0, most=0.5
    )

    model: str | None = setting("model", "wrn28-10, resnet18, torchvision/NAME, ...", kind=str)
    dropout: float = setting("model", "dropout rate", 0.0, kind=float, least=0, most=0.99)

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
    start_block: str | None = setting(
        "sparsity", "begin with these finer blocks, BOxBC, and later cut into --block", kind=str
    )
    coarsen_at: str | None = setting(
        "sparsity",
        "--start-block: share of training (edst, sup-tickets: of the first phase) at which blocks "
        "become --block; several, such as 0.1,0.3, double them on the way [0.25]",
        kind=str,
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
    score: str = setting(
        "sparsity",
        "norm of a block's weights, and of its gradient, that decides what updates drop and grow",
        "l1",
        kind=str,
        choices=SCORES,
    )
    fan_in: str = setting(
        "sparsity",
        "constant: all output blocks of a layer have as many blocks, within one",
        "free",
        kind=str,
        choices=FAN_INS,
    )
    ablation: float = setting(
        "sparsity",
        "constant fan-in: share of salient blocks below which an output block loses all",
        0.0,
        kind=float,
        least=0,
        most=1,
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

    members: int | None = setting("ensemble", "tickets", kind=int, least=1, most=1000)
    escape: float | None = setting(
        "ensemble",
        "share replaced between two tickets [edst 0.8, sup-tickets 0.5]",
        kind=float,
        above=0,
        most=1,
    )
    cycles: int | None = setting(
        "ensemble", "sup-tickets: tickets that are averaged", kind=int, least=1, most=1000
    )
    averaging: str | None = setting(
        "ensemble",
        "sup-tickets: mean of all, or exponential [caa]",
        kind=str,
        choices=("caa", "cima"),
    )

    passes: int | None = setting(
        "baselines", "mc-dropout: forward passes at test [10]", kind=int, least=1, most=1000
    )
    batch_repetition: int | None = setting(
        "baselines", "mimo: times an image is in a batch [1]", kind=int, least=1, most=100
    )
    input_repetition: float | None = setting(
        "baselines", "mimo: share of inputs equal for all members [0]", kind=float, least=0, most=1
    )
    shared_stages: int | None = setting(
        "baselines", "treenet: stages of the trunk [all but the last]", kind=int, least=1
    )

    rounds: int | None = setting(
        "pruning", "lottery: prunings [a fifth each]; ltr [20]", kind=int, least=1, most=1000
    )
    rewind: str | None = setting(
        "pruning",
        "lottery: weights and learning rate go back, or the latter alone [weights]",
        kind=str,
        choices=("weights", "learning-rate"),
    )
    rewind_point: float | None = setting(
        "pruning",
        "share of a dense run to go back to [lottery, ltr 0.05; kd-ticket 0]",
        kind=float,
        least=0,
        most=0.5,
    )
    teacher: str | None = setting(
        "pruning", "kd-ticket: run folder of the trained dense network", kind=str
    )
    temperature: float | None = setting(
        "pruning", "kd-ticket: of the soft labels [4]", kind=float, above=0, most=1000
    )
    distillation: float | None = setting(
        "pruning",
        "kd-ticket: share of the soft labels in the loss [0.9]",
        kind=float,
        above=0,
        most=1,
    )

    scale: float | None = setting(
        "optimisation",
        "multiplies epochs, the dense ones too, and a given --update-interval",
        kind=float,
        above=0,
        most=1000,
    )
    epochs: int | None = setting("optimisation", "in all, over all phases", kind=int, least=1)
    dense_epochs: int | None = setting(
        "optimisation", "epochs of the dense run that FLOPs are compared with", kind=int, least=1
    )
    lr: float | None = setting("optimisation", "highest learning rate", kind=float, above=0)
    momentum: float = setting("optimisation", "of SGD", 0.9, kind=float, least=0, most=0.9999)
    weight_decay: float | None = setting("optimisation", "of SGD", kind=float, least=0)
    norm_decay: str | None = setting(
        "optimisation",
        "weight decay on batch-norm too [on, imagenet off]",
        kind=str,
        choices=("on", "off"),
    )
    label_smoothing: float | None = setting(
        "optimisation", "of the training loss", kind=float, least=0, most=0.99
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

    @property
    def criteria(self) -> Criteria:
        """What decides which blocks an update drops and grows."""
        return Criteria(self.score, self.fan_in, self.ablation)

    def saved(self) -> dict[str, Any]:
        """Return what config.json holds: every setting that decides the result."""
        return {k: v for k, v in asdict(self).items() if k not in TRANSIENT}


FIELDS = {f.name: f for f in fields(Config)}
