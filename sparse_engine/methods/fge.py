"""Fast geometric ensemble: M tickets around the end of one run (Garipov et al. 2018, section 4).

The first four fifths are those of an ordinary run. In the last one the learning rate goes up and
down in triangles (equation 2), from half of the highest to a tenth of it, and wherever it is
lowest there is a ticket; so the first cycle is half a cycle. These rates, for residual networks,
and the share of the run are the released code's, whose cycles of 2 of 200 epochs are --members 20.
"""

from sparse_engine.config.config import Config
from sparse_engine.methods.actions import Fresh, SaveTicket
from sparse_engine.methods.freetickets import schedule_for
from sparse_engine.methods.learning_rate import LearningRate, Linear, Part
from sparse_engine.methods.phase import Phase, split_steps

ORDINARY = 0.8
HIGH, LOW = 0.5, 0.1
DESCENT = Linear(((0.0, HIGH), (1.0, LOW)))
TRIANGLE = Linear(((0.0, LOW), (0.5, HIGH), (1.0, LOW)))


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return the ordinary part and a phase per ticket."""
    members = config.members or 1
    cycle = (1 - ORDINARY) / (members - 0.5)
    ordinary, *lengths = split_steps(steps, [ORDINARY, cycle / 2, *[cycle] * (members - 1)])
    rate = Part(LearningRate(schedule_for(config.dataset).member, warmup), 0, steps)
    begin = (Fresh(config.sparsity or 0.0),)
    cycles = [
        Phase(f"cycle {number}", length, DESCENT if number == 1 else TRIANGLE, end=(SaveTicket(),))
        for number, length in enumerate(lengths, 1)
    ]
    return [Phase("ordinary", ordinary, rate, begin=begin), *cycles]
