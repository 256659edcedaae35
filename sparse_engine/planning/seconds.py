"""Seconds of candidates' trainings here, by steps that are timed in turn in this process.

Networks are fresh and see random images; candidates that share a network share its times. A network
whose blocks change is timed in steps that update them too, of which a training has as many as its
phases say. Not counted: start, data, evaluation, and what methods do between phases.
"""

import statistics
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
from sparse_kernels.timing import in_turn, rounds_within

# What all rounds may take together, how many are wanted, and how many there are at most.
SECONDS, WANTED, MOST = 25.0, 3, 9
# Images of a step on a CPU by which the length of a round is guessed.
FEW = 4
# Rules whose updates are timed: those of the others change how many blocks there are.
TIMED_RULES = ("set", "rigl")
# By key: settings, and rule and share of its updates if these are timed.
_Networks: TypeAlias = dict[Hashable, tuple[Config, str | None, float]]


@dataclass(frozen=True)
class Clock:
    """How steps were timed.

    dense: seconds of the dense network's step of a whole batch; images: in the steps that were
    timed, perhaps fewer; rounds: in which each network took its steps.
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
    batch = dense.batch_size or 1
    try:
        seconds, images, rounds = _timed(networks, batch, info, device)
    except torch.OutOfMemoryError:
        raise RunFailure(
            f"no memory on {device} for {len(networks)} networks at a time; take a smaller "
            "--batch-size or --model"
        ) from None
    scale = batch / images
    priced = [plan.priced(*(scale * each for each in seconds[plan.key])) for plan in plans]
    return priced, Clock(scale * seconds[of_dense][0], images, rounds)


def _updates(phases: Sequence[Phase]) -> tuple[str | None, float, int]:
    """Return the rule, the share that an update replaces, and how many updates there are."""
    found = [(phase.topology, phase.update_schedule(), phase.steps) for phase in phases]
    timed = [(t, s.updates_in(n)) for t, s, n in found if t and s and t.rule in TIMED_RULES]
    if not timed:
        return None, 0.0, 0
    return timed[0][0].rule, timed[0][0].drop, sum(updates for _, updates in timed)


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
    """Return by key the seconds of a step, and of one with an update; its images; and the rounds.

    On a CPU a batch is halved until the rounds wanted fit into SECONDS.
    """
    on_gpu = device.type == "cuda"
    built = {key: build_network(config, info, device) for key, (config, *_) in networks.items()}

    def steps_of(images: int) -> dict[tuple[Hashable, str], Step]:
        steps = {}
        for key, (config, rule, drop) in networks.items():
            step = steps[key, "step"] = random_step(built[key], config, info, images)
            if rule is not None:
                steps[key, "update"] = updating_step(built[key], step, drop)
        return steps

    few = batch if on_gpu else min(FEW, batch)
    steps, images = steps_of(few), batch
    of_one = sum(seconds for (seconds,) in in_turn([*steps.values()], 1, on_gpu)) / few
    while images >= 2 * few and (WANTED + 1) * of_one * images > SECONDS:
        images //= 2
    steps = steps if images == few else steps_of(images)
    rounds = rounds_within(SECONDS - of_one * images, of_one * images, MOST)
    medians = map(statistics.median, in_turn([*steps.values()], rounds, on_gpu))
    found = dict(zip(steps, medians))
    seconds = {key: (found[key, "step"], found.get((key, "update"), 0.0)) for key in networks}
    return seconds, images, rounds
