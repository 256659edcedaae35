"""A network of a run: the model, its optimizer and its topology."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.layers.initialisation import draw_by_fan_in
from sparse_engine.layers.optimizer_state import Momenta, start_momenta
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.layers.rows import to_rows
from sparse_engine.layers.state_dict import check_model, load_state
from sparse_engine.layers.surgery import model_densities, replace_modules
from sparse_engine.models.fused import fuse
from sparse_engine.models.members import training_pair
from sparse_engine.runs.model import dense_model
from sparse_engine.sparsity.distribution import Sparsity
from sparse_engine.sparsity.layer_budgets import HEADROOM
from sparse_engine.sparsity.rules import RULES
from sparse_engine.sparsity.saliency import SCORES, Batch
from sparse_engine.sparsity.sparsify import plan_model, sparsify
from sparse_engine.sparsity.topology import Topology
from sparse_engine.training.fusing import runs_fused, runs_in_rows
from sparse_engine.training.processes import SINGLE_PROCESS, DistributedContext

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass
class Network:
    """What one phase hands to the next.

    rate: the learning rate, a tensor that the optimizer reads in every step.
    norm_decay: as the optimizer was built.
    in_rows: whether the model runs in rows order.
    fused: whether its norms run in as few passes as they can, see fuse.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    topology: Topology
    rate: Tensor
    norm_decay: bool = True
    world: DistributedContext = SINGLE_PROCESS
    in_rows: bool = False
    fused: bool = False
    _parallel: nn.Module | None = None

    def __post_init__(self) -> None:
        self._changed()

    @property
    def members(self) -> list[nn.Module]:
        """The networks that become tickets: the model itself, unless several train as one."""
        return [self.model]

    @property
    def stored(self) -> nn.Module:
        """What a checkpoint holds the state dict of."""
        return self.model

    def _changed(self) -> None:
        """Prepare layers that are new for the way the model runs."""
        if self.in_rows:
            to_rows(self.model)
        if self.fused:
            fuse(self.model)
        self._parallel = None

    @property
    def pair(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """training_pair of the model; with several processes, whose gradients are averaged."""
        if self.world.size == 1:
            return partial(training_pair, self.model)
        if self._parallel is None:
            # The hooks of one that is no longer used would go on averaging.
            gc.collect()
            self._parallel = self.world.parallel(self.model)
        return self._parallel

    def replace_layers(self, replaced: Mapping[str, nn.Module]) -> None:
        """Put other layers in place of some; optimizer state and exploration are carried over."""
        replace_modules(self.model, replaced, self.optimizer)
        self._changed()
        old = self.topology
        self.topology = old.of(self.model, self.optimizer)
        # A layer that was full until now has had all of its weights active.
        full = {n: torch.ones_like(mask) for n, mask in self.topology.ever_active.items()}
        state = old.state_dict()
        self.topology.load_state_dict({**state, "ever_active": {**full, **state["ever_active"]}})

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Become the network of a state dict, without momentum and with nothing else explored."""
        load_state(self.stored, state)
        self._changed()
        groups = decay_groups(self.model, self.norm_decay)
        for group, parameters in zip(self.optimizer.param_groups, groups, strict=True):
            group["params"] = parameters
        self.optimizer.state.clear()
        start_momenta(self.optimizer)
        old = self.topology
        self.topology = old.of(self.model, self.optimizer)
        self.topology.updates = old.updates

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of the model; optimizer and topology have their own."""
        return self.stored.state_dict()

    def check_state(self, state: Any) -> None:
        """Raise InputError unless load_state_dict can take a state."""
        check_model(self.stored, state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Become the network of a state_dict(), as load does."""
        self.load(state)

    @property
    def momenta(self) -> Momenta:
        """What a checkpoint holds of the optimizer."""
        return Momenta(self.optimizer, self.rate)

    def densities(self) -> list[dict[str, float]]:
        """Return the density of every sparse layer by name, of each member."""
        return [model_densities(model) for model in self.members]


def member_seed(seed: int, member: int) -> int:
    """Return the seed of a member (counted from 0): no two of a run, or of two runs, share it."""
    return seed * 1009 + member


def build_network(
    config: Config,
    info: DatasetInfo,
    device: torch.device,
    member: int = 0,
    sparsity: float | None = None,
    batches: Sequence[Batch] = (),
    world: DistributedContext = SINGLE_PROCESS,
) -> Network:
    """Return a fresh network with seeds of its own.

    Args:
        config: resolved.
        info: of the data set.
        device: where it will be.
        member: decides the seeds.
        sparsity: the configuration's unless said.
        batches: of saliency_batches; without any, the blocks of a sparse network are random.
        world: the processes that train it together, each of which builds it alike.
    """
    model = build_model(config, info, device, member, sparsity, batches, world)
    return network_of(model, config, device, member, world)


def network_of(
    model: nn.Module,
    config: Config,
    device: torch.device,
    member: int = 0,
    world: DistributedContext = SINGLE_PROCESS,
) -> Network:
    """Return a network of a model that is on its device already; arguments as of build_network."""
    optimizer, rate = build_optimizer(config, model, device)
    seed, rule = member_seed(config.seed, member), rule_of(config)
    topology = Topology(model, optimizer, rule, seed, world, cover=config.cover)
    order = runs_in_rows(config, model, device), runs_fused(config, model, device)
    return Network(model, optimizer, topology, rate, config.norm_decay != "off", world, *order)


def build_model(
    config: Config,
    info: DatasetInfo,
    device: torch.device,
    member: int = 0,
    sparsity: float | None = None,
    batches: Sequence[Batch] = (),
    world: DistributedContext = SINGLE_PROCESS,
) -> nn.Module:
    """Return a fresh model by itself; arguments as of build_network."""
    seed = member_seed(config.seed, member)
    torch.manual_seed(seed)
    model = dense_model(config, info)
    sparsity = config.sparsity if sparsity is None else sparsity
    if sparsity:
        _make_sparse(model, config, sparsity, torch.Generator().manual_seed(seed), batches)
    if config.sync_batch_norm and world.size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model.to(device=device, memory_format=torch.channels_last)


def build_optimizer(
    config: Config, model: nn.Module, device: torch.device
) -> tuple[torch.optim.Optimizer, Tensor]:
    """Return a model's optimizer, and the learning rate that it reads in every step."""
    decayed, *others = decay_groups(model, config.norm_decay != "off")
    rate = torch.tensor(config.lr, device=device)
    optimizer = torch.optim.SGD(
        [{"params": decayed}, *({"params": group, "weight_decay": 0.0} for group in others)],
        lr=rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )
    start_momenta(optimizer)
    return optimizer, rate


def rule_of(config: Config) -> str:
    """Return the rule of a run's topology updates."""
    return config.topology if config.topology in RULES else "static"


def _make_sparse(
    model: nn.Module,
    config: Config,
    sparsity: float,
    generator: torch.Generator,
    batches: Sequence[Batch],
) -> None:
    sparsify(
        model,
        sparsity,
        config.layer_densities,
        config.blocks,
        skip=None,  # the model remembers what --skip has named
        init=SCORES[config.start](model, batches) if batches else "random",
        generator=generator,
        taps=config.taps,
        start_sparsity=config.start_sparsity,
        headroom=HEADROOM if config.topology == "snfs" else 0.0,
    )
    if config.weight_init == "fan-in":
        draw_by_fan_in(model, generator)


def decay_groups(model: nn.Module, norm_decay: bool) -> list[list[nn.Parameter]]:
    """Return the parameters with weight decay and, if there are any, those without.

    Those without are what a module calls `undecayed` and, unless norm_decay, those of norms.
    """
    apart = {id(getattr(m, name)) for m in model.modules() for name in getattr(m, "undecayed", ())}
    owners = [m for m in model.modules() if isinstance(m, NORMS) and not norm_decay]
    apart |= {id(p) for module in owners for p in module.parameters()}
    groups = [[], []]
    for parameter in model.parameters():
        groups[id(parameter) in apart].append(parameter)
    return [group for group in groups if group]


def wanted(config: Config, sparsity: float | None = None) -> Sparsity:
    """Return how sparse a run's networks are, and in which blocks; its own sparsity unless said."""
    sparsity = config.sparsity if sparsity is None else sparsity
    return Sparsity(sparsity or 0.0, config.layer_densities, config.blocks, config.taps)


def plan_network(
    config: Config, model: nn.Module, sparsity: float | None = None
) -> list[LayerPlan]:
    """Return how build_network cuts a dense model, which may be on the meta device."""
    return plan_model(model, wanted(config, sparsity))
