"""What a run costs: FLOPs of training and test against one dense network, parameters and bytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.layers.state_dict import saved_densities
from sparse_engine.methods.actions import SaveTicket, StartMember
from sparse_engine.methods.phase import Phase
from sparse_engine.models.workload import dense_flops, forward_flops, step_flops
from sparse_engine.runs.model import dense_model, is_plain, plain_model
from sparse_engine.schema import check_like, demand
from sparse_engine.sparsity.rules import RULES
from sparse_engine.sparsity.sparsify import denser
from sparse_engine.training.downsampling import training_flops
from sparse_engine.training.network import plan_network


@dataclass
class Densities:
    """Density by layer name, of sparse layers, in each phase and in each ticket saved so far.

    stored: how many values the layers of each ticket hold, the padding of ragged blocks included.
    """

    phases: list[dict[str, float]] = field(default_factory=list)
    tickets: list[dict[str, float]] = field(default_factory=list)
    stored: list[dict[str, int]] = field(default_factory=list)

    def state_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return what a resumed run needs."""
        return asdict(self)

    def check_state(self, state: Any, phases: int, tickets: int) -> None:
        """Raise InputError unless a state has the densities of so many phases and tickets."""
        lists = {"phases": phases, "tickets": tickets, "stored": tickets}
        if isinstance(state, Mapping) and "stored" not in state:
            del lists["stored"]  # as earlier versions wrote it
        check_like(state, {name: [] for name in lists}, "densities")
        for name, count in lists.items():
            listed = state[name]
            demand(len(listed) == count, f"densities.{name}", f"a list of {count}", listed)
            for layers in listed:
                demand(isinstance(layers, Mapping), f"densities.{name}", "objects", layers)
                for value in layers.values():
                    if name == "stored":
                        demand(
                            type(value) is int and value > 0, "densities.stored", "counts", value
                        )
                        continue
                    number = type(value) is float and 0 < value <= 1
                    demand(number, f"densities.{name}", "of numbers above 0, at most 1", value)

    def load_state_dict(self, state: Mapping[str, list[dict[str, Any]]]) -> None:
        """Continue from state_dict(), which earlier versions wrote without `stored`."""
        self.phases, self.tickets = state["phases"], state["tickets"]
        self.stored = state.get("stored", [{} for _ in self.tickets])

    def add_ticket(self, model: nn.Module, ticket: Mapping[str, torch.Tensor]) -> None:
        """Note a ticket, the state dict of a model without unused slots."""
        layers = saved_densities(model, ticket)
        self.tickets.append(layers)
        self.stored.append({name: ticket[f"{name}.values"].numel() for name in layers})


@dataclass(frozen=True)
class DenseNetwork:
    """The network of a run with all of its weights, which its costs are set against.

    model: on the meta device; test_flops, training_flops: forward FLOPs per image by layer;
    one_network: those at test of one plain model, which a MIMO or a TreeNet is more than.
    """

    model: nn.Module
    test_flops: Mapping[str, int]
    training_flops: Mapping[str, float]
    one_network: float


def dense_network(config: Config, info: DatasetInfo) -> DenseNetwork:
    """Return the dense network of a resolved configuration, counted."""
    image = (info.channels, info.height, info.width)
    with torch.device("meta"):
        model = dense_model(config, info)
        plain = None if is_plain(config) else plain_model(config, info)
    test = dense_flops(model, image)
    training = test
    if plain or config.downsample_rate:
        training = training_flops(model, image, config.downsample_rate, config.batch_size)
    one = dense_flops(plain, image) if plain else test
    return DenseNetwork(model, test, training, float(sum(one.values())))


def run_costs(
    config: Config,
    info: DatasetInfo,
    phases: Sequence[Phase],
    densities: Densities | None = None,
    dense: DenseNetwork | None = None,
) -> dict[str, Any]:
    """Return a run's costs.

    Args:
        config: resolved.
        info: of the data set.
        phases: of build_phases.
        densities: what a run had. Without it they are planned: pruning then is taken to leave
            the layers the run's distribution, where in truth training decides.
        dense: of dense_network, where it was counted before.

    Returns:
        train_flops; train_flops_ratio to a dense run of config.dense_epochs, which unless said are
        those that --method dense trains by default; test_flops_ratio, of all tickets to one dense
        network; parameters, as stored, and bytes of all tickets together: fp32 values, and the
        lists of which blocks they are; `plans`, the layers of the last ticket; `layer_flops`,
        dense forward FLOPs by layer.
    """
    dense = dense or dense_network(config, info)
    model, by_layer, training = dense.model, dense.test_flops, dense.training_flops
    full = plan_network(config, model, sparsity=0.0)
    densities = densities or planned_densities(config, model, phases)
    means = mean_densities(config, model, phases, densities)
    images = config.batch_size * sum(
        _phase_flops(phase, forward_flops(training, layers), sum(training.values()))
        for phase, layers in zip(phases, means, strict=True)
    )
    steps = sum(phase.steps for phase in phases)
    dense_images = config.dense_epochs / config.epochs * steps * config.batch_size
    tickets = [[p.at(layers.get(p.name, 1.0)) for p in full] for layers in densities.tickets]
    parameters = sum(p.numel() for p in model.parameters())
    sparse = [
        replace(p, active=_blocks(p, layers[p.name], counts))
        for layers, counts in zip(densities.tickets, densities.stored, strict=True)
        for p in full
        if layers.get(p.name, 1.0) < 1
    ]
    stored = len(tickets) * parameters - sum(p.weights - p.stored for p in sparse)
    return {
        "train_flops": images,
        "train_flops_ratio": images / (3 * dense.one_network * dense_images),
        "test_flops_ratio": sum(forward_flops(by_layer, t) for t in densities.tickets)
        / dense.one_network,
        "parameters": stored,
        "bytes": 4 * stored + sum(p.index_bytes for p in sparse),
        "plans": tickets[-1],
        "layer_flops": by_layer,
    }


def _blocks(full: LayerPlan, density: float, counts: Mapping[str, int]) -> int:
    """Return the blocks of a layer in a ticket; earlier versions did not note their values."""
    values = counts.get(full.name)
    if values is None:
        return round(density * full.total)
    return values // math.prod(full.block)


def planned_densities(config: Config, model: nn.Module, phases: Sequence[Phase]) -> Densities:
    """Return the densities that phases would have, were pruned layers as the distribution says."""

    @cache
    def sparse(sparsity: float) -> list[LayerPlan]:
        return [p for p in plan_network(config, model, sparsity) if not p.is_dense]

    def layers(sparsity: float) -> dict[str, float]:
        return {p.name: p.density for p in sparse(sparsity)}

    densities, sparsity, kept = Densities(), 0.0, {}
    for phase in phases:
        for action in phase.begin:
            sparsity = action.sparsity_after(sparsity, kept)
        densities.phases.append(layers(sparsity))
        for action in phase.end:
            sparsity = action.sparsity_after(sparsity, kept)
            if isinstance(action, SaveTicket):
                saved = kept[action.kept] if action.kept else sparsity
                densities.tickets.append(layers(saved))
                densities.stored.append({p.name: p.stored for p in sparse(saved)})
    return densities


def mean_densities(
    config: Config, model: nn.Module, phases: Sequence[Phase], densities: Densities
) -> list[dict[str, float]]:
    """Return the densities of each phase, on average over a phase that prunes gradually."""
    means = list(densities.phases)
    for number, phase in enumerate(phases):
        fresh = any(isinstance(action, StartMember) for action in phase.begin)
        if fresh and phase.topology is not None and phase.topology.rule == "granet":
            share = phase.update_schedule().mean_pruned_share(phase.steps)
            start, final = (plan_network(config, model, s) for s in (config.start_sparsity, None))
            means[number] = {
                f.name: denser(s, f).density + (f.density - denser(s, f).density) * share
                for s, f in zip(start, final)
                if not f.is_dense
            }
    return means


def _phase_flops(phase: Phase, sparse: float, dense: float) -> float:
    """Return the training FLOPs of a phase for one image a step (Evci et al. 2020, app. H)."""
    teacher = phase.steps * phase.loss.teacher_passes * dense
    schedule = phase.update_schedule()
    gradient_steps = RULES[phase.topology.rule].gradient_steps if phase.topology else 0
    if schedule is None or not gradient_steps:
        return teacher + phase.steps * step_flops(sparse, dense, None)
    dynamic = min(phase.steps, schedule.stop or phase.steps)
    each = step_flops(sparse, dense, schedule.interval, gradient_steps)
    return teacher + dynamic * each + (phase.steps - dynamic) * step_flops(sparse, dense, None)
