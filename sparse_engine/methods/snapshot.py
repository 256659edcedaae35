"""Snapshot ensemble: M tickets from one trajectory (Huang et al. 2017, section 3).

The learning rate falls along half a cosine in each of M equal cycles and jumps back to the highest
for the next (equation 2); each cycle's end is a ticket. All cycles together are one run. There is
no warm-up, as in the paper.
"""

from sparse_engine.config.config import Config
from sparse_engine.methods.actions import Fresh, SaveTicket
from sparse_engine.methods.learning_rate import Cosine
from sparse_engine.methods.phase import Phase, split_steps


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return a phase per cycle; only the first begins with a fresh network."""
    lengths = split_steps(steps, [1.0] * (config.members or 1))
    fresh = (Fresh(config.sparsity or 0.0),)
    return [
        Phase(
            f"cycle {number}",
            length,
            Cosine(),
            begin=fresh if number == 1 else (),
            end=(SaveTicket(),),
        )
        for number, length in enumerate(lengths, 1)
    ]
