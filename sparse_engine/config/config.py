"""The settings of a run: one frozen dataclass, whose fields are also flags. Imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from sparse_engine.config.group import Group
from sparse_engine.data.preparation import ON_OFF, Preparation
from sparse_engine.layers.blocks import LayerBlocks, parse_blocks
from sparse_engine.sparsity.erdos_renyi import DISTRIBUTIONS, ErdosRenyi
from sparse_engine.sparsity.update_schedule import DROP_SCHEDULES, UPDATE_RULES

# Settings that say where and how to run, not what: they are not part of a saved configuration.
TRANSIENT = (
    *("out", "resume", "config", "dry_run", "print_config", "download", "scale", "tune"),
    "no_compare",
)
# A resumed run may move to other hardware and other paths, and nothing else may change.
MOVABLE = (
    *("data_dir", "teacher", "device", "backend", "cuda_graph", "fuse", "compile", "timeout"),
    *("checkpoint_every", "evaluate_every", "workers", "log", "download", "resume", "no_compare"),
)
# Settings that are paths, of which `~` is the home folder; a data set may be `imagefolder:PATH`.
PATHS = ("out", "resume", "config", "data_dir", "teacher", "dataset")
# Settings of which each may decide the densities anew, in place of those in a file.
BUDGET = (
    *("distribution", "erk_power", "time_budget", "match", "sparsity"),
    *("model", "block", "layer_blocks", "taps"),
)

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

RUN, SPARSITY, DATA, MODEL = map(Group, ("run", "sparsity", "data", "model"))
ENSEMBLE, BASELINES = Group("ensemble"), Group("baselines")
PRUNING, OPTIMISATION = Group("pruning"), Group("optimisation")


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. None means: as the recipe of the data set or the method says."""

    method: str = RUN.text("training method", "edst")
    out: str | None = RUN.text("run folder [runs/METHOD-DATASET-NUMBER]")
    resume: str | None = RUN.text("continue the run in this folder")
    config: str | None = RUN.text("a file, else a name in sparse-engine configs; flags win over it")
    dry_run: bool = RUN.switch("print the plan and train nothing")
    print_config: bool = RUN.switch("print all settings as JSON, as --config reads them, and stop")
    no_compare: bool = RUN.switch("do not time a training step against the dense network's")
    log: str = RUN.choice("scalars and pictures of blocks, in the run folder", "none|tensorboard")
    seed: int = RUN.whole("seed of everything random", 0, least=0, most=2**31)
    device: str = RUN.choice("where to run", "auto|cpu|cuda")
    dtype: str = RUN.choice("bf16 and fp16 run under autocast, fp16 with a scaled loss", DTYPES)
    backend: str = RUN.choice("implementation of the sparse layers", "auto|triton|native|masked")
    cuda_graph: str = RUN.choice(
        "replay the training step as a CUDA graph: auto does on a GPU, where it can", "auto|on|off"
    )
    fuse: str = RUN.choice(
        "rows order, and norms inside the passes of convolutions: auto does on a GPU; on a CPU it "
        "gives norms passes of their own",
        "auto|on|off",
    )
    compile: bool = RUN.switch("run the network through torch.compile")
    checkpoint_every: str | None = RUN.text(
        "checkpoints within epochs too: steps (500) or seconds (600s)"
    )
    evaluate_every: int = RUN.whole(
        "epochs from one evaluation to the next; each phase ends with one", 1, least=1
    )
    deterministic: bool = RUN.switch(
        "only algorithms that give the same bits every time on one device"
    )
    skip_nonfinite: int = RUN.whole(
        "steps that are left out because loss or gradient is not finite, before the run fails",
        0,
        least=0,
    )
    parallel: str = RUN.choice(
        "processes (torchrun) share each batch, or the members of an ensemble; or members are "
        "grouped: one process trains all as one network",
        "data|members|grouped",
    )
    sync_batch_norm: bool = RUN.switch(
        "on GPUs: batch-norm statistics over the images of all processes"
    )
    timeout: float = RUN.number(
        "seconds that a process waits for another", 600.0, least=1, most=1e6
    )
    tune: bool = RUN.switch(
        "first time the GPU kernels' tiles, or on a CPU up to which density the native kernels pay"
    )

    sparsity: float | None = SPARSITY.number(
        "share of weights that is absent, in [0, 1)", least=0, most=0.999999
    )
    block: str | None = SPARSITY.text("BOxBC, 1x1 for unstructured, or auto")
    layer_blocks: Mapping[str, str] | None = SPARSITY.mapping(
        "JSON object, pattern of layer names: BOxBC, auto, or dense (full, counts in the "
        "budget); the first that matches, others have --block"
    )
    skip: str | None = SPARSITY.text(
        "names and patterns of layers that stay dense, outside the budget, with commas: conv1,fc*"
    )
    taps: str = SPARSITY.choice(
        "a block's taps are stored or absent each by itself, by row of the kernel, or all together",
        "each|row|all",
    )
    distribution: str | None = SPARSITY.option(
        "layer densities [erk, digits uniform]; timed spends --time-budget by measured times",
        (*DISTRIBUTIONS, "timed"),
    )
    erk_power: float = SPARSITY.number(
        "erk and er: power of the densities, 0 uniform, above 1 less in wide layers",
        1.0,
        least=0,
        most=10,
    )
    time_budget: float | None = SPARSITY.number(
        "timed: seconds of all sparsifiable convolutions and linear layers, forward and "
        "gradients, over those of the dense ones; sparsity is a result",
        above=0,
        most=1,
    )
    match: str = SPARSITY.choice(
        "what --sparsity S counts: weights, test FLOPs or measured layer time are 1 - S of dense",
        "params|flops|time",
    )
    densities: Mapping[str, float] | None = SPARSITY.mapping(
        "JSON object, density by layer name: what timed decided in a run"
    )
    start: str = SPARSITY.choice(
        "first blocks; snip and grasp choose them, and the layer densities, from a few batches",
        "random|snip|grasp",
    )
    weight_init: str = SPARSITY.choice(
        "weights of sparse layers as drawn for dense ones, or by active fan-in of each channel",
        "dense|fan-in",
    )
    topology: str | None = SPARSITY.option("update rule of ensembles", UPDATE_RULES)
    start_sparsity: float | None = SPARSITY.number(
        "granet begins with this sparsity and prunes to --sparsity [0.5]", least=0, most=0.999999
    )
    prune_scope: str | None = SPARSITY.option(
        "pruning ranks all blocks together, or those of each layer [1x1 global, else layer]",
        "global|layer",
    )
    update_interval: int | None = SPARSITY.whole(
        "steps between topology updates [scales with the run]", least=1
    )
    drop: float | None = SPARSITY.number(
        "share of blocks an update replaces [set, rigl 0.3; edst 0.3, imagenet 0.5; else 0.5]",
        above=0,
        most=1,
    )
    drop_schedule: str | None = SPARSITY.option(
        "of the drop rate [methods set, rigl, snfs, granet, edst, imagenet cosine; else constant]",
        DROP_SCHEDULES,
    )
    cover: bool = SPARSITY.switch(
        "updates spare a channel's last block, and grow one where a channel has none"
    )
    stop: float | None = SPARSITY.number(
        "share of a phase that saves a ticket after which topology is fixed", above=0, most=1
    )

    dataset: str = DATA.text("name, imagefolder:PATH, or NAME of DATA_DIR/NAME.npz", "digits")
    data_dir: str | None = DATA.text("folder with the data")
    download: bool = DATA.switch("fetch the data through torchvision")
    image_size: int | None = DATA.whole(
        "image folders: side in pixels of the square cut out of a picture [224]", least=8, most=4096
    )
    crop_scale: float | None = DATA.number(
        "image folders: smallest share of a picture that a training crop shows [0.08]",
        above=0,
        most=1,
    )
    augmentation: str = DATA.choice("random crops and flips of training images", ON_OFF)
    flip: str | None = DATA.option("mirror half of them [as the data set says]", ON_OFF)
    mean: str | None = DATA.text(
        "of pixels in [0, 1], subtracted: one number, or one a channel: 0.49,0.48,0.45 "
        "[the data set's; imagefolder ImageNet's]"
    )
    std: str | None = DATA.text("deviation that they are then divided by, in the same way")
    batch_size: int | None = DATA.whole("images a step", least=1)
    downsample_rate: float = DATA.number(
        "share of mini-batches with images of half the size", 0.0, least=0, most=0.99
    )
    workers: int = DATA.whole("loader processes (image folders)", 2, least=0)
    select: str = DATA.choice(
        "epoch that a ticket is of: the last, or the best on a validation split", "last|validation"
    )
    validation: float = DATA.number(
        "share of training data for --select validation", 0.1, above=0, most=0.5
    )

    model: str | None = MODEL.text("wrn28-10, resnet18, torchvision/NAME, ...")
    dropout: float = MODEL.number("dropout rate", 0.0, least=0, most=0.99)

    members: int | None = ENSEMBLE.whole("networks of the ensemble", least=1, most=1000)
    escape: float | None = ENSEMBLE.number(
        "share replaced between two tickets [edst 0.8, sup-tickets 0.5]", above=0, most=1
    )
    restart: float | None = ENSEMBLE.number(
        "edst: learning rate each refinement begins with, as a share of --lr [1, imagenet 0.1]",
        above=0,
        most=1,
    )
    cycles: int | None = ENSEMBLE.whole(
        "sup-tickets: tickets that are averaged", least=1, most=1000
    )
    averaging: str | None = ENSEMBLE.option(
        "sup-tickets: mean of all, or exponential [caa]", "caa|cima"
    )

    passes: int | None = BASELINES.whole(
        "mc-dropout: forward passes at test [10]", least=1, most=1000
    )
    batch_repetition: int | None = BASELINES.whole(
        "mimo: times an image is in a batch [1]", least=1, most=100
    )
    input_repetition: float | None = BASELINES.number(
        "mimo: share of inputs equal for all members [0]", least=0, most=1
    )
    shared_stages: int | None = BASELINES.whole(
        "treenet: stages of the trunk [all but the last]", least=1
    )

    permute_channels: bool = PRUNING.switch(
        "before the first pruning, order channels so that strong weights share blocks"
    )
    rounds: int | None = PRUNING.whole(
        "lottery: prunings [a fifth each]; ltr [20]", least=1, most=1000
    )
    rewind: str | None = PRUNING.option(
        "lottery: weights and learning rate go back, or the latter alone [weights]",
        "weights|learning-rate",
    )
    rewind_point: float | None = PRUNING.number(
        "share of a dense run to go back to [lottery, ltr 0.05; kd-ticket 0]", least=0, most=0.5
    )
    teacher: str | None = PRUNING.text("kd-ticket: run folder of the trained dense network")
    temperature: float | None = PRUNING.number(
        "kd-ticket: of the soft labels [4]", above=0, most=1000
    )
    distillation: float | None = PRUNING.number(
        "kd-ticket: share of the soft labels in the loss [0.9]", above=0, most=1
    )

    scale: float | None = OPTIMISATION.number(
        "multiplies epochs, the dense ones too, and a given --update-interval", above=0, most=1000
    )
    epochs: int | None = OPTIMISATION.whole("in all, over all phases", least=1)
    dense_epochs: int | None = OPTIMISATION.whole(
        "epochs of the dense run that FLOPs are compared with", least=1
    )
    lr: float | None = OPTIMISATION.number(
        "highest learning rate [0.1 for batches of 128, in proportion to --batch-size]", above=0
    )
    warmup: float | None = OPTIMISATION.number(
        "share of the run over which the learning rate rises to it [imagenet 5 epochs; a larger "
        "batch than 128 with no --lr 5 of 90; else none]",
        least=0,
        most=0.5,
    )
    momentum: float = OPTIMISATION.number("of SGD", 0.9, least=0, most=0.9999)
    weight_decay: float | None = OPTIMISATION.number("of SGD", least=0)
    norm_decay: str | None = OPTIMISATION.option(
        "weight decay on batch-norm too [on, imagenet off]", "on|off"
    )
    label_smoothing: float | None = OPTIMISATION.number("of the training loss", least=0, most=0.99)

    @property
    def blocks(self) -> LayerBlocks:
        """What each layer is cut into: --layer-blocks, and for all others --block; InputError."""
        return parse_blocks(self.layer_blocks or {}, self.block or "1x1")

    @property
    def preparation(self) -> Preparation:
        """How images are made ready, where that is not as the data set says."""
        return Preparation(
            self.image_size, self.crop_scale, self.augmentation, self.flip, self.mean, self.std
        )

    @property
    def layer_densities(self) -> str | ErdosRenyi | Mapping[str, float]:
        """What spreads a sparsity over the layers: what was decided, or a distribution."""
        if self.erk_power != 1:
            return ErdosRenyi(self.distribution == "erk", self.erk_power)
        return self.densities or self.distribution or "erk"

    def saved(self) -> dict[str, Any]:
        """Return what config.json holds: every setting that decides the result."""
        return {k: v for k, v in asdict(self).items() if k not in TRANSIENT}


FIELDS = {f.name: f for f in fields(Config)}
