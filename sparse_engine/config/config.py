"""The settings of a run: one frozen dataclass, whose fields are also flags. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from sparse_engine.config.run_settings import RunSettings, setting
from sparse_engine.config.sparsity_settings import SparsitySettings

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
class Config(SparsitySettings, RunSettings):
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

    permute_channels: bool = setting(
        "pruning",
        "before the first cut, order channels so that strong weights share blocks",
        False,
        kind=bool,
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

    def saved(self) -> dict[str, Any]:
        """Return what config.json holds: every setting that decides the result."""
        return {k: v for k, v in asdict(self).items() if k not in TRANSIENT}


FIELDS = {f.name: f for f in fields(Config)}
