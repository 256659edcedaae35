"""DST ensemble: M independent dynamic sparse networks (FreeTickets, Liu et al. 2022, Alg. 2).

Every member has its own seed, so its own start, data order and topology.
"""

from sparse_engine.config.config import Config
from sparse_engine.methods.actions import Fresh, SaveTicket
from sparse_engine.methods.freetickets import schedule_for, ticket_stop, topology_rule
from sparse_engine.methods.learning_rate import LearningRate
from sparse_engine.methods.phase import Phase, split_steps


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return one fresh phase per member."""
    members = config.members or 1
    lengths = split_steps(steps, [1.0] * members)
    schedule = schedule_for(config.dataset)
    shortest = (ticket_stop(config) or 1.0) * min(lengths)
    topology = topology_rule(config, schedule.member_interval * lengths[0], shortest)
    rate = LearningRate(schedule.member, warmup * members)
    begin = Fresh(config.sparsity or 0.0)
    return [
        Phase(f"member {number}", length, rate, topology, (begin,), end=(SaveTicket(),))
        for number, length in enumerate(lengths, 1)
    ]
