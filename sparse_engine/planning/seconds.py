"""Seconds of candidates' trainings here, by steps that are timed in turn in this process.

Networks are fresh and see random images; candidates that share a network share its times. A network
whose blocks change is timed in steps that update them too, of which a training has as many as its
phases say. Not counted: start, data, evaluation, and what methods do between phases.
"""

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.errors import RunFailure
from sparse_engine.methods.phase import Phase
from sparse_engine.planning.candidates import Candidate
from sparse_engine.planning.choice import Priced
from sparse_engine.runs.model import dense_model, is_plain
from sparse_engine.training.costs import planned_densities
from sparse_engine.training.network import build_network
from sparse_engine.training.run import plan_phases
from sparse_engine.training.times.budget import resolve_budget
from sparse_engine.training.times.step_times import (
    Step,
    at_mean_density,
    random_step,
    updating_step,
)
from sparse_kernels.timing import in_turn, medians_in_turn, rounds_within

# What all rounds may take together; rounds that a size of steps must leave time for, updates
# included; and how many are kept at most.
SECONDS, NEEDED, MOST = 25.0, 8, 9
# Images of the first steps on a CPU, and how many times as many the next have.
FEW, GROWTH = 2, 4
# Updates rarer than one in so many steps are not timed.
RARE = 100
# Rules whose updates are timed: those of the others change how many blocks there are.
TIMED_RULES = ("set", "rigl")
# By key: settings, and rule and share of its updates if these are timed.
_Networks: TypeAlias = dict[Hashable, tuple[Config, str | None, float]]


@dataclass(frozen=True)
class Clock:
    """How steps were timed.

    dense: seconds of the dense network's step of a whole batch; images: in the largest steps that
    were timed, perhaps fewer; rounds: in which each network took one of these.
    """

    dense: float
    images: int
    rounds: int


@dataclass(frozen=True)
class Plan:
    """A candidate as it is timed.

    network: settings of its network, with the densities it has on average; key: of the network;
    rule, drop: of its updates, None where they are not timed; updates: of `steps` steps.
    """

    candidate: Candidate
    network: Config
    key: Hashable
    rule: str | None
    drop: float
    updates: int
    steps: int

    def priced(self, step: float, update: float) -> Priced:
        """Return the candidate with its price; arguments are seconds of one step of either kind."""
        whole = step * (self.steps - self.updates) + update * self.updates
        return Priced(self.candidate, step, whole / (self.candidate.config.epochs or 1))


def plan_of(candidate: Candidate, info: DatasetInfo, device: torch.device, images: int) -> Plan:
    """Return how a candidate is timed.

    Args:
        candidate: to be timed.
        info: of the data set.
        device: where to time.
        images: in the training split.

    Raises:
        InputError: it cannot be trained so.
    """
    config = resolve_budget(candidate.config, info, device)
    phases = plan_phases(config, images)
    with torch.device("meta"):
        model = dense_model(config, info)
    mean = at_mean_density(config, info, phases, planned_densities(config, model, phases))
    rule, drop, updates = _updates(phases)
    network = replace(mean, topology=rule or "static")
    steps = sum(phase.steps for phase in phases)
    return Plan(candidate, network, _network_key(network), rule, drop, updates, steps)


def price(
    plans: Sequence[Plan], dense: Config, info: DatasetInfo, device: torch.device
) -> tuple[list[Priced], Clock]:
    """Time the steps of candidates and of the dense network, all in turn.

    Args:
        plans: of the candidates.
        dense: the user's dense run, resolved.
        info: of the data set.
        device: where to time; a CPU with torch's present number of threads.

    Raises:
        RunFailure: the networks do not fit into memory together.
    """
    of_dense = _network_key(dense)
    networks: _Networks = {of_dense: (dense, None, 0.0)}
    for plan in plans:
        if plan.key not in networks or plan.rule is not None:
            networks[plan.key] = (plan.network, plan.rule, plan.drop)
    try:
        seconds, images, rounds = _timed(networks, dense.batch_size or 1, info, device)
    except torch.OutOfMemoryError:
        raise RunFailure(
            f"no memory on {device} for {len(networks)} networks at a time; take a smaller "
            "--batch-size or --model"
        ) from None
    priced = [plan.priced(*seconds[plan.key]) for plan in plans]
    return priced, Clock(seconds[of_dense][0], images, rounds)


def _updates(phases: Sequence[Phase]) -> tuple[str | None, float, int]:
    """Return the rule, the share that an update replaces, and how many updates there are."""
    found = [(phase.topology, phase.update_schedule(), phase.steps) for phase in phases]
    timed = [(t, s.updates_in(n)) for t, s, n in found if t and s and t.rule in TIMED_RULES]
    updates = sum(updates for _, updates in timed)
    if RARE * updates < sum(phase.steps for phase in phases):
        return None, 0.0, 0
    return timed[0][0].rule, timed[0][0].drop, updates


def _network_key(config: Config) -> Hashable:
    """Return what decides how long a step of a network takes."""
    layers = tuple(sorted((config.densities or {}).items()))
    sparse = any(density < 1 for _, density in layers)
    blocks = (config.block, str(config.layer_blocks), config.taps) if sparse else None
    kind = None if is_plain(config) else (config.method, config.members)
    return config.model, blocks, layers if sparse else None, kind


def _timed(
    networks: _Networks, batch: int, info: DatasetInfo, device: torch.device
) -> tuple[dict[Hashable, tuple[float, float]], int, int]:
    """Return by key the seconds of a step and of one with an update; and images and rounds of it.

    Where a batch would take too long, two sizes of steps are timed, and its own time lies on the
    straight line through both: what updates weights takes as long for any number of images.
    """
    on_gpu, began = device.type == "cuda", time.perf_counter()
    built = {key: build_network(config, info, device) for key, (config, *_) in networks.items()}

    def steps_of(images: int) -> list[Step]:
        return [random_step(built[k], config, info, images) for k, (config, *_) in networks.items()]

    images, before = batch if on_gpu else min(FEW, batch), None
    while True:
        steps = steps_of(images)
        taken = [seconds for (seconds,) in in_turn(steps, 1, on_gpu)]
        left = SECONDS - (time.perf_counter() - began)
        size = _next_size(images, batch, left / NEEDED / sum(taken), first=before is None)
        if size == images:
            break
        before, images = (images, taken), size
    rounds = rounds_within(left - sum(taken), sum(taken), MOST)
    taken = medians_in_turn(steps, rounds, on_gpu)
    growth = [_growth(images, after, batch, before, n) for n, after in enumerate(taken)]
    updating = {
        key: updating_step(built[key], step, drop)
        for step, (key, (_, rule, drop)) in zip(steps, networks.items())
        if rule is not None
    }
    updates = dict(zip(updating, medians_in_turn([*updating.values()], 1, on_gpu)))
    seconds = {
        key: (factor * step, factor * updates.get(key, step))
        for key, step, factor in zip(networks, taken, growth)
    }
    return seconds, images, rounds


def _next_size(images: int, batch: int, factor: float, first: bool) -> int:
    """Return the images of the next steps to be timed, as many as now if these are the last.

    factor: how many times as long steps may take; two sizes are timed in any case.
    """
    if factor * images >= batch:
        return batch
    larger = min(batch, GROWTH * images)
    return larger if first or factor * images >= larger else images


def _growth(
    images: int, seconds: float, batch: int, before: tuple[int, list[float]] | None, number: int
) -> float:
    """Return how many times as long as a timed step one of a whole batch takes."""
    if images == batch or before is None:
        return batch / images
    fewer, taken = before
    slope = max(0.0, (seconds - taken[number]) / (images - fewer))
    return 1 + slope * (batch - images) / seconds
