"""Lottery tickets by iterative magnitude pruning (Frankle & Carbin 2019).

A dense run, then rounds: prune, rewind, train again. What is gone back to is the run's early
weights (Frankle et al. 2020; point 0 is the initialisation), or the learning-rate schedule alone
(Renda et al. 2020). One round is one-shot pruning. With several members the last rounds' trained
networks are the tickets, which differ in sparsity.
"""

from __future__ import annotations

import math

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.methods.actions import Action, Rewind, SaveTicket
from sparse_engine.methods.phase import Phase, split_steps
from sparse_engine.methods.pruning_actions import Prune
from sparse_engine.methods.rewinding import POINT, dense_run, permutation_of

PRUNED_A_ROUND = 0.2


def usual_rounds(config: Config) -> int:
    """Return how many rounds of a fifth of the weights each reach the sparsity."""
    density = 1 - (config.sparsity or 0.0)
    return max(1, math.ceil(math.log(density) / math.log(1 - PRUNED_A_ROUND) - 1e-9))


def run_count(config: Config) -> float:
    """Return the length of the whole method in dense runs."""
    return 1 + (config.rounds or 1) * (1 - (config.rewind_point or 0.0))


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
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

    def cut(number: int) -> tuple[Action, ...]:
        """Return what comes before round `number`, every round pruning the same share."""
        density = (1 - (config.sparsity or 0.0)) ** (number / rounds)
        prune = Prune(config.sparsity or 0.0 if number == rounds else 1 - density)
        rewind = (Rewind(POINT),) if config.rewind != "learning-rate" else ()
        return (*(permutation_of(config) if number == 1 else ()), prune, *rewind)

    found = [*opening, Phase("dense", lengths[0], run.rest, begin=begin, end=cut(1))]
    for number, length in enumerate(lengths[1:], 1):
        end: tuple[Action, ...] = (SaveTicket(),) if number > rounds - members else ()
        end += cut(number + 1) if number < rounds else ()
        found.append(Phase(f"round {number}", length, run.rest, end=end))
    return found
