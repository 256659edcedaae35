"""Deep ensemble: M independent dense networks (Lakshminarayanan et al. 2017).

Every member has its own seed, so its own start and data order. The learning rate is that of one
network of a DST ensemble.
"""

from sparse_engine.config.config import Config
from sparse_engine.methods.actions import Fresh, SaveTicket
from sparse_engine.methods.freetickets import schedule_for
from sparse_engine.methods.learning_rate import LearningRate
from sparse_engine.methods.phase import Phase, split_steps


def run_count(config: Config) -> float:
    """Return the length of the whole method in dense runs."""
    return config.members or 1


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return one fresh phase per member."""
    members = config.members or 1
    rate = LearningRate(schedule_for(config.dataset).member, warmup * members)
    return [
        Phase(f"member {number}", length, rate, begin=(Fresh(0.0),), end=(SaveTicket(),))
        for number, length in enumerate(split_steps(steps, [1.0] * members), 1)
    ]
