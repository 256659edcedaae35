"""Lottery tickets: train densely, prune, go back, train again.

Iterative magnitude pruning (Frankle & Carbin 2019): a dense run, then rounds: prune, rewind, train
again. What is gone back to is the run's early weights (Frankle et al. 2020; point 0 is the
initialisation), or the learning-rate schedule alone (Renda et al. 2020). One round is one-shot
pruning. With several members the last rounds' trained networks are the tickets, which differ in
sparsity.

Lottery-ticket-rewinding ensemble (ltr), a baseline of FreeTickets (Liu et al. 2022, appendix C): a
dense network is pruned gradually to the sparsity (Zhu & Gupta 2017, eq. 1), its surviving weights
go back to those at 5 % of the run, and this ticket is trained M times with different data orders.
"""

import math
from dataclasses import dataclass

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.methods.actions import (
    Action,
    Rewind,
    SaveState,
    SaveTicket,
    StartFromState,
    StartMember,
)
from sparse_engine.methods.freetickets import schedule_for
from sparse_engine.methods.learning_rate import LearningRate, Segment
from sparse_engine.methods.method import Method, usual_scope
from sparse_engine.methods.phase import Phase, split_steps
from sparse_engine.methods.pruning_actions import Prune, permutation_of

PRUNED_A_ROUND = 0.2
POINT, TICKET = "rewind point", "ticket"
# As in the gradual pruning of Gale et al. 2019 that RigL compares with, the end is undisturbed.
LAST_PRUNING = 0.75


@dataclass(frozen=True)
class DenseRun:
    """A run of `whole` steps, `start` of which come before the point that is gone back to."""

    start: int
    whole: int
    rate: LearningRate

    def segment(self, done: int) -> Segment:
        """Return the run's learning rate from a step on."""
        return Segment(self.rate, done, self.whole)

    @property
    def rest(self) -> Segment:
        """The learning rate from the point to the end of the run."""
        return self.segment(self.start)

    def opening(self) -> tuple[list[Phase], tuple[Action, ...]]:
        """Return the phases up to the point, and what the phase after it begins with."""
        if not self.start:
            return [], (StartMember(0.0), SaveState(POINT))
        rate = self.segment(0)
        begin, end = (StartMember(0.0),), (SaveState(POINT),)
        return [Phase("start", self.start, rate, begin=begin, end=end)], ()


def dense_run(config: Config, start: int, whole: int, warmup_steps: float) -> DenseRun:
    """Return a run with the learning rate of one network of the data set's recipe."""
    milestones = schedule_for(config.dataset).member
    return DenseRun(start, whole, LearningRate(milestones, warmup_steps / whole))


def usual_rounds(config: Config) -> int:
    """Return how many rounds of a fifth of the weights each reach the sparsity."""
    density = 1 - (config.sparsity or 0.0)
    return max(1, math.ceil(math.log(density) / math.log(1 - PRUNED_A_ROUND) - 1e-9))


def lottery_phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return the dense run and the rounds."""
    rounds, members = config.rounds or 1, config.members or 1
    if members > rounds:
        raise InputError(
            f"a lottery of {rounds} rounds has {rounds} tickets, found members {members}; "
            "use more --rounds, or --method ltr for several tickets of one sparsity"
        )
    point = config.rewind_point or 0.0
    lengths = split_steps(steps, [*[point] * (point > 0), *[1 - point] * (1 + rounds)])
    start = lengths.pop(0) if point else 0
    run = dense_run(config, start, start + lengths[0], warmup * steps)
    opening, begin = run.opening()

    def pruning(number: int) -> tuple[Action, ...]:
        """Return what comes before round `number`, every round pruning the same share."""
        density = (1 - (config.sparsity or 0.0)) ** (number / rounds)
        prune = Prune(config.sparsity or 0.0 if number == rounds else 1 - density)
        rewind = (Rewind(POINT),) if config.rewind != "learning-rate" else ()
        return (*(permutation_of(config) if number == 1 else ()), prune, *rewind)

    planned = [*opening, Phase("dense", lengths[0], run.rest, begin=begin, end=pruning(1))]
    for number, length in enumerate(lengths[1:], 1):
        end: tuple[Action, ...] = (SaveTicket(),) if number > rounds - members else ()
        end += pruning(number + 1) if number < rounds else ()
        planned.append(Phase(f"round {number}", length, run.rest, end=end))
    return planned


def ltr_phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return the gradual pruning, in phases that end with a pruning each, and M retrainings."""
    rounds, members, point = config.rounds or 1, config.members or 1, config.rewind_point or 0.0
    shares = [(LAST_PRUNING - point) / rounds] * rounds + [1 - LAST_PRUNING]
    lengths = split_steps(steps, [*[point] * (point > 0), *shares, *[1 - point] * members])
    start = lengths.pop(0) if point else 0
    pruning, retraining = lengths[: rounds + 1], lengths[rounds + 1 :]
    run = dense_run(config, start, start + sum(pruning), warmup * steps)
    planned, begin = run.opening()
    done = start
    for number, length in enumerate(pruning, 1):
        sparsity = (config.sparsity or 0.0) * (1 - (1 - number / rounds) ** 3)
        end = (Prune(sparsity),) if number <= rounds else (Rewind(POINT), SaveState(TICKET))
        end = (*permutation_of(config), *end) if number == 1 else end
        name = f"prune {number}" if number <= rounds else "settle"
        planned.append(Phase(name, length, run.segment(done), begin=begin, end=end))
        done, begin = done + length, ()
    return planned + [
        Phase(
            f"ticket {number}",
            length,
            run.rest,
            begin=(StartFromState(TICKET),),
            end=(SaveTicket(),),
        )
        for number, length in enumerate(retraining, 1)
    ]


def _retrained(config: Config) -> float:
    return 1 - (config.rewind_point or 0.0)


LOTTERY = Method(
    lottery_phases,
    starts_dense=True,
    least_members=1,
    usual_members=1,
    runs=lambda config: 1 + (config.rounds or 1) * _retrained(config),
    options={
        "rounds": usual_rounds,
        "rewind": "weights",
        "rewind_point": 0.05,
        "prune_scope": usual_scope,
    },
)
LTR = Method(
    ltr_phases,
    starts_dense=True,
    least_members=1,
    runs=lambda config: 1 + (config.members or 1) * _retrained(config),
    options={"rounds": 20, "rewind_point": 0.05, "prune_scope": usual_scope},
)
