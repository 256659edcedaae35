"""Sup-tickets: cheap tickets of one run, averaged into one sparse network (Yin et al. 2022).

Ordinary sparse training with its whole learning-rate schedule comes first. Then cycles: each begins
with one prune-and-grow, its learning rate rises and falls, and its last weights are a ticket that
goes into the running average. Training goes on from the ticket, not from the average; what is
saved is the average after the last cycle.
"""

from dataclasses import dataclass

from sparse_engine.config.config import Config
from sparse_engine.methods.actions import Average, Escape, SaveTicket, StartMember
from sparse_engine.methods.freetickets import Milestones, schedule_for, topology_rule
from sparse_engine.methods.learning_rate import LearningRate, Linear
from sparse_engine.methods.method import CHOSEN, Method, usual_scope
from sparse_engine.methods.phase import Phase, split_steps

AVERAGE = "average"


@dataclass(frozen=True)
class Cycles:
    """One data set's schedule: epochs of a run and of one cycle, and the rates of both parts."""

    epochs: int
    cycle: int
    count: int
    base: Milestones
    low: float
    high: float


CIFAR = Cycles(250, 8, 3, ((0.0, 1.0), (0.5, 0.1), (0.75, 0.01)), 0.01, 0.05)
# Decays at epochs 30, 60 and 85 of the 92 before the cycles.
_BASE = ((0.0, 1.0), (30 / 92, 0.1), (60 / 92, 0.01), (85 / 92, 0.001))
IMAGENET = Cycles(100, 2, 4, _BASE, 0.001, 0.005)


def cycles_for(dataset: str) -> Cycles:
    """Return ImageNet's schedule for `imagenet`, CIFAR's for anything else."""
    return IMAGENET if dataset == "imagenet" else CIFAR


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return the sparse training and its cycles."""
    schedule = cycles_for(config.dataset)
    count, sparsity = config.cycles or schedule.count, config.sparsity or 0.0
    share = schedule.cycle / schedule.epochs
    lengths = split_steps(steps, [max(share, 1 - count * share), *[share] * count])
    interval = schedule_for(config.dataset).member_interval * lengths[0]
    topology = topology_rule(config, interval, lengths[0])
    average = Average(AVERAGE, config.averaging or "caa", sparsity)
    escape = Escape(config.escape or 0.5)
    rate = LearningRate(schedule.base, warmup * steps / lengths[0])
    first = Phase("sparse", lengths[0], rate, topology, (StartMember(sparsity),), (average, escape))
    triangle = Linear(((0.0, schedule.low), (0.5, schedule.high), (1.0, schedule.low)))
    ends = [(average, escape)] * (count - 1) + [(average, SaveTicket(AVERAGE))]
    cycles = [
        Phase(f"cycle {number}", length, triangle, end=end)
        for number, (length, end) in enumerate(zip(lengths[1:], ends), 1)
    ]
    return [first, *cycles]


METHOD = Method(
    phases,
    rule=CHOSEN,
    options={
        "escape": 0.5,
        "cycles": lambda config: cycles_for(config.dataset).count,
        "averaging": "caa",
        "prune_scope": usual_scope,
    },
)
