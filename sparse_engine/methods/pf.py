"""Prune-and-fine-tune ensemble, a baseline of FreeTickets (Liu et al. 2022, appendix C).

M dense networks of different seeds are trained, pruned once by magnitude and fine-tuned for as
long again. The paper does not say with which learning rate: here it is that of a refinement.
"""

from sparse_engine.config.config import Config
from sparse_engine.methods.actions import SaveTicket, StartMember
from sparse_engine.methods.freetickets import schedule_for
from sparse_engine.methods.learning_rate import LearningRate
from sparse_engine.methods.method import Method, usual_scope
from sparse_engine.methods.phase import Phase, split_steps
from sparse_engine.methods.pruning_actions import Prune, permutation_of


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return a dense phase and a fine-tuning phase for each member."""
    schedule = schedule_for(config.dataset)
    lengths = split_steps(steps, [1.0] * 2 * (config.members or 1))
    prune = (*permutation_of(config), Prune(config.sparsity or 0.0))
    planned = []
    for number, (dense, tune) in enumerate(zip(lengths[::2], lengths[1::2]), 1):
        rate = LearningRate(schedule.member, warmup * steps / dense)
        begin = (StartMember(0.0),)
        planned.append(Phase(f"dense {number}", dense, rate, begin=begin, end=prune))
        rate = LearningRate(schedule.refinement)
        planned.append(Phase(f"tune {number}", tune, rate, end=(SaveTicket(),)))
    return planned


METHOD = Method(
    phases,
    starts_dense=True,
    least_members=1,
    runs=lambda config: 2 * (config.members or 1),
    options={"prune_scope": usual_scope},
)
