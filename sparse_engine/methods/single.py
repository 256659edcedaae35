"""One network in one phase: dense, static sparse, SET (Mocanu 2018) and RigL (Evci 2020).

The learning rate is that of one network of a DST ensemble. RigL's updates (section 3.2): drop
rate .3 with a cosine, every 100 of 97,656 steps, none in the last quarter.
"""

from sparse_engine.actions import Fresh, SaveTicket
from sparse_engine.config import Config
from sparse_engine.learning_rate import LearningRate
from sparse_engine.methods.freetickets import schedule_for
from sparse_engine.phases import Phase, TopologyRule, automatic_interval

INTERVAL_SHARE = 100 / 97_656
STOP = 0.75


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return the phase of `dense`, `static`, `set` or `rigl`."""
    rate = LearningRate(schedule_for(config.dataset).member, warmup)
    topology = None
    if config.method in ("set", "rigl"):
        stop = STOP if config.stop is None else config.stop
        topology = TopologyRule(
            rule=config.method,
            interval=config.update_interval
            or automatic_interval(INTERVAL_SHARE * steps, stop * steps),
            drop=config.drop or 0.3,
            schedule=config.drop_schedule or "cosine",
            stop=stop,
        )
    begin = (Fresh(config.sparsity or 0.0),)
    return [Phase(config.method, steps, rate, topology, begin, end=(SaveTicket(),))]
