"""One network in one phase: dense, static sparse, and the rules that update its blocks.

The learning rate is that of one network of a DST ensemble. RigL's updates (Evci 2020, section 3.2):
drop rate .3 with a cosine, every 100 of 97,656 steps, none in the last quarter; SET (Mocanu 2018)
the same. SNFS (Dettmers 2019) replaces .5 every epoch, GraNet (Liu 2021) .5 every 1000 steps.
"""

from sparse_engine.config.config import Config
from sparse_engine.methods.actions import SaveTicket, StartMember
from sparse_engine.methods.freetickets import schedule_for
from sparse_engine.methods.learning_rate import LearningRate
from sparse_engine.methods.phase import Phase, TopologyRule, automatic_interval

# Steps between updates as a share of the run, and the first drop rate, by rule.
UPDATES = {
    "set": (100 / 97_656, 0.3),
    "rigl": (100 / 97_656, 0.3),
    "snfs": (1 / 250, 0.5),
    "granet": (1000 / 97_656, 0.5),
}
STOP = 0.75


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return the phase of `dense`, `static` or a rule in UPDATES."""
    rate = LearningRate(schedule_for(config.dataset).member, warmup)
    topology = None
    if config.method in UPDATES:
        interval, drop = UPDATES[config.method]
        stop = STOP if config.stop is None else config.stop
        topology = TopologyRule(
            rule=config.method,
            interval=config.update_interval or automatic_interval(interval * steps, stop * steps),
            drop=config.drop or drop,
            schedule=config.drop_schedule or "cosine",
            stop=stop,
        )
    begin = (StartMember(config.sparsity or 0.0),)
    return [Phase(config.method, steps, rate, topology, begin, end=(SaveTicket(),))]
