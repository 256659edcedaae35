"""Seconds of candidates' trainings here, by steps that are timed in turn in this process.

Networks are fresh and see random images; candidates that share a network share its times. A network
whose blocks change is timed in steps that update them too, of which a training has as many as its
phases say. Not counted: start, data, evaluation, and what methods do between phases.
"""

import time
from collections.abc import Callable, Hashable, Sequence
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

# What timing takes: so many seconds at least and at most, between them a share of the budget.
LEAST_SECONDS, MOST_SECONDS, SHARE = 25.0, 300.0, 0.02
# Rounds that a size of steps must leave time for, updates included, and how many are kept at most.
NEEDED, MOST = 4, 9
# On a CPU: parts of a batch that the first steps see, and that the last ones see at least; and how
# many times as many images each size has.
FIRST, LEAST, GROWTH = 32, 8, 4
# Updates rarer than one in so many steps are not timed.
RARE = 100
# Rules whose updates are timed: those of the others change how many blocks there are.
TIMED_RULES = ("set", "rigl")
# By key: settings, and rule and share of its updates if these are timed.
_Networks: TypeAlias = dict[Hashable, tuple[Config, str | None, float]]
# Images of steps, and the seconds of each network's.
_Size: TypeAlias = tuple[int, list[float]]


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


def timing_seconds(budget: float) -> float:
    """Return how long steps are timed to plan some seconds; more than that only large networks."""
    return min(MOST_SECONDS, max(LEAST_SECONDS, SHARE * budget))


def price(
    plans: Sequence[Plan], dense: Config, info: DatasetInfo, device: torch.device, limit: float
) -> tuple[list[Priced], Clock]:
    """Time the steps of candidates and of the dense network, all in turn.

    Args:
        plans: of the candidates.
        dense: the user's dense run, resolved.
        info: of the data set.
        device: where to time; a CPU with torch's present number of threads.
        limit: of timing_seconds.

    Raises:
        RunFailure: the networks do not fit into memory together.
    """
    of_dense = _network_key(dense)
    networks: _Networks = {of_dense: (dense, None, 0.0)}
    for plan in plans:
        if plan.key not in networks or plan.rule is not None:
            networks[plan.key] = (plan.network, plan.rule, plan.drop)
    try:
        seconds, images, rounds = _timed(networks, dense.batch_size or 1, info, device, limit)
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
    networks: _Networks, batch: int, info: DatasetInfo, device: torch.device, limit: float
) -> tuple[dict[Hashable, tuple[float, float]], int, int]:
    """Return by key the seconds of a step and of one with an update; and images and rounds of it.

    Seconds are of a whole batch.
    """
    built = {key: build_network(config, info, device) for key, (config, *_) in networks.items()}
    on_gpu = device.type == "cuda"

    def steps_of(images: int) -> list[Step]:
        return [random_step(built[key], networks[key][0], info, images) for key in networks]

    first = batch if on_gpu else min(batch, max(2, batch // FIRST))
    steps, sizes, rounds = _timed_sizes(steps_of, first, batch, on_gpu, limit)
    drops = {key: drop for key, (_, rule, drop) in networks.items() if rule is not None}
    step_of = dict(zip(networks, steps))
    updating = [updating_step(built[key], step_of[key], drop) for key, drop in drops.items()]
    updates = dict(zip(drops, medians_in_turn(updating, 1, on_gpu)))
    images, taken = sizes[-1]
    seconds = {
        key: (growth * step, growth * updates.get(key, step))
        for key, step, growth in zip(networks, taken, _growths(sizes, batch))
    }
    return seconds, images, rounds


def _timed_sizes(
    steps_of: Callable[[int], list[Step]], first: int, batch: int, on_gpu: bool, limit: float
) -> tuple[list[Step], list[_Size], int]:
    """Time steps of more and more images, up to a batch or as far as there is time.

    Args:
        steps_of: gives the steps of so many images.
        first: images of the first steps.
        batch: those of a batch.
        on_gpu: where they are.
        limit: in seconds.

    Returns:
        The last steps, what each size took, and the rounds of the last.
    """
    began, images, sizes = time.perf_counter(), first, []
    while True:
        steps = steps_of(images)
        once = [seconds for (seconds,) in in_turn(steps, 1, on_gpu)]
        sizes.append((images, once))
        left = limit - (time.perf_counter() - began)
        larger = _next_size(images, batch, left / NEEDED / sum(once), len(sizes) == 1)
        if larger == images:
            break
        images = larger
    if left < NEEDED * sum(once):
        return steps, sizes, 1
    rounds = rounds_within(left / 2, sum(once), MOST)
    return steps, [*sizes[:-1], (images, medians_in_turn(steps, rounds, on_gpu))], rounds


def _next_size(images: int, batch: int, longer: float, is_first: bool) -> int:
    """Return the images of the next steps to be timed, as many as now if these are the last.

    longer: how many times as long steps may take.
    """
    if longer * images >= batch:
        return batch
    larger = min(batch, GROWTH * images)
    needed = is_first or LEAST * images < batch
    return larger if needed or longer * images >= larger else images


def _growths(sizes: Sequence[_Size], batch: int) -> list[float]:
    """Return how many times as long as its last step one of a whole batch takes, by network.

    It lies on the straight line through the last two sizes: what a step does to weights takes as
    long for any number of images.
    """
    images, seconds = sizes[-1]
    if images == batch:
        return [1.0] * len(seconds)
    fewer, before = sizes[-2]
    slopes = [max(0.0, (s - b) / (images - fewer)) for s, b in zip(seconds, before)]
    return [1 + slope * (batch - images) / s for slope, s in zip(slopes, seconds)]
