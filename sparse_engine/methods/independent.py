"""M independent networks: DST ensembles and deep ensembles.

DST ensemble: dynamic sparse networks (FreeTickets, Liu et al. 2022, Alg. 2). Deep ensemble: dense
ones (Lakshminarayanan et al. 2017). Every member has its own seed, so its own start, data order
and topology. Members may train as one network in one process (--parallel grouped).
"""

from collections.abc import Sequence
from dataclasses import replace

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.methods.actions import SaveTicket, StartMember
from sparse_engine.methods.freetickets import schedule_for, topology_rule
from sparse_engine.methods.learning_rate import LearningRate
from sparse_engine.methods.method import CHOSEN, Method
from sparse_engine.methods.phase import Phase, split_steps


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return one fresh phase per member."""
    members = config.members or 1
    lengths = split_steps(steps, [1.0] * members)
    schedule = schedule_for(config.dataset)
    topology = topology_rule(config, schedule.member_interval * lengths[0], min(lengths))
    rate = LearningRate(schedule.member, warmup * members)
    begin = StartMember(config.sparsity or 0.0)
    return [
        Phase(f"member {number}", length, rate, topology, (begin,), end=(SaveTicket(),))
        for number, length in enumerate(lengths, 1)
    ]


def is_grouped(config: Config) -> bool:
    """Return whether a run's members train as one network."""
    return config.parallel == "grouped"


def as_one(phases: Sequence[Phase]) -> Phase:
    """Return the phase in which members train together that would have a phase each."""
    count = len(phases)
    return replace(phases[0], name=f"members 1 to {count}", end=(SaveTicket(members=count),))


def _check_dense(config: Config) -> None:
    if config.sparsity:
        raise InputError(
            f"method 'deep-ensemble' is of dense networks, found sparsity {config.sparsity}; "
            "use --method dst-ensemble --topology static"
        )


def _members(config: Config) -> float:
    return config.members or 1


DST_ENSEMBLE = Method(phases, rule=CHOSEN, least_members=1, independent=True, runs=_members)
DEEP_ENSEMBLE = Method(
    phases,
    usual_sparsity=0.0,
    least_members=2,
    independent=True,
    runs=_members,
    check=_check_dense,
)
