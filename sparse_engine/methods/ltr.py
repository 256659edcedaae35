"""Lottery-ticket-rewinding ensemble, a baseline of FreeTickets (Liu et al. 2022, appendix C).

A dense network is pruned gradually to the sparsity (Zhu & Gupta 2017, eq. 1), its surviving weights
go back to those at 5 % of the run, and this ticket is trained M times with different data orders.
"""

from __future__ import annotations

from sparse_engine.config.config import Config
from sparse_engine.methods.actions import Keep, Restore, Rewind, SaveTicket
from sparse_engine.methods.phase import Phase, split_steps
from sparse_engine.methods.pruning_actions import Prune
from sparse_engine.methods.rewinding import POINT, dense_run, permutation_of

TICKET = "ticket"
# As in the gradual pruning of Gale et al. 2019 that RigL compares with, the end is undisturbed.
LAST_PRUNING = 0.75


def run_count(config: Config) -> float:
    """Return the length of the whole method in dense runs."""
    return 1 + (config.members or 1) * (1 - (config.rewind_point or 0.0))


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return the gradual pruning, in phases that end with a pruning each, and M retrainings."""
    rounds, members, point = config.rounds or 1, config.members or 1, config.rewind_point or 0.0
    shares = [(LAST_PRUNING - point) / rounds] * rounds + [1 - LAST_PRUNING]
    lengths = split_steps(steps, [*[point] * (point > 0), *shares, *[1 - point] * members])
    start = lengths.pop(0) if point else 0
    pruning, retraining = lengths[: rounds + 1], lengths[rounds + 1 :]
    run = dense_run(config, start, start + sum(pruning), warmup * steps)
    found, begin = run.opening()
    done = start
    for number, length in enumerate(pruning, 1):
        sparsity = (config.sparsity or 0.0) * (1 - (1 - number / rounds) ** 3)
        end = (Prune(sparsity),) if number <= rounds else (Rewind(POINT), Keep(TICKET))
        end = (*permutation_of(config), *end) if number == 1 else end
        name = f"prune {number}" if number <= rounds else "settle"
        found.append(Phase(name, length, run.part(done), begin=begin, end=end))
        done, begin = done + length, ()
    return found + [
        Phase(f"ticket {number}", length, run.rest, begin=(Restore(TICKET),), end=(SaveTicket(),))
        for number, length in enumerate(retraining, 1)
    ]
