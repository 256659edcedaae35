"""Tickets of one run whose learning rate goes up and down: snapshot and fast geometric ensembles.

Snapshot (Huang et al. 2017, section 3): the learning rate falls along half a cosine in each of M
equal cycles and jumps back to the highest for the next (equation 2); each cycle's end is a ticket.
All cycles together are one run. There is no warm-up, as in the paper.

Fast geometric ensemble (Garipov et al. 2018, section 4): the first four fifths are those of an
ordinary run. In the last one the learning rate goes up and down in triangles (equation 2), from
half of the highest to a tenth of it, and wherever it is lowest there is a ticket; so the first
cycle is half a cycle. These rates, for residual networks, and the share of the run are the released
code's, whose cycles of 2 of 200 epochs are --members 20.
"""

from sparse_engine.config.config import Config
from sparse_engine.methods.actions import SaveTicket, StartMember
from sparse_engine.methods.freetickets import schedule_for
from sparse_engine.methods.learning_rate import Cosine, LearningRate, Linear, Segment
from sparse_engine.methods.method import Method
from sparse_engine.methods.phase import Phase, split_steps

ORDINARY = 0.8
HIGH, LOW = 0.5, 0.1
DESCENT = Linear(((0.0, HIGH), (1.0, LOW)))
TRIANGLE = Linear(((0.0, LOW), (0.5, HIGH), (1.0, LOW)))


def snapshot_phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return a phase per cycle; only the first begins with a fresh network."""
    lengths = split_steps(steps, [1.0] * (config.members or 1))
    begin = [(StartMember(config.sparsity or 0.0),), *[()] * (len(lengths) - 1)]
    return [
        Phase(f"cycle {number}", length, Cosine(), begin=first, end=(SaveTicket(),))
        for number, (length, first) in enumerate(zip(lengths, begin), 1)
    ]


def fge_phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return the ordinary part and a phase per ticket."""
    members = config.members or 1
    cycle = (1 - ORDINARY) / (members - 0.5)
    ordinary, *lengths = split_steps(steps, [ORDINARY, cycle / 2, *[cycle] * (members - 1)])
    rate = Segment(LearningRate(schedule_for(config.dataset).member, warmup), 0, steps)
    begin = (StartMember(config.sparsity or 0.0),)
    cycles = [
        Phase(f"cycle {number}", length, DESCENT if number == 1 else TRIANGLE, end=(SaveTicket(),))
        for number, length in enumerate(lengths, 1)
    ]
    return [Phase("ordinary", ordinary, rate, begin=begin), *cycles]


SNAPSHOT = Method(snapshot_phases, usual_sparsity=0.0, least_members=2)
FGE = Method(fge_phases, usual_sparsity=0.0, least_members=2)
