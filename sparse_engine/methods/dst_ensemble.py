"""DST ensemble: M independent dynamic sparse networks (FreeTickets, Liu et al. 2022, Alg. 2).

Every member has its own seed, so its own start, data order and topology. Updates replace half
of the blocks every 1000 of 88,000 steps, at a constant rate. A ticket taken right after an update
is worse, so unless the best epoch is chosen on validation data, updates stop at 75 %.
"""

from sparse_engine.config import Config
from sparse_engine.methods.single import STEPS_DOWN
from sparse_engine.phases import LearningRate, Phase, TopologyRule, automatic_interval, split_steps

INTERVAL_SHARE = 1000 / 88_000


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return one fresh phase per member."""
    members = config.members or 1
    lengths = split_steps(steps, [1.0] * members)
    stop = refinement_stop(config)
    topology = None
    if config.topology != "static":
        topology = TopologyRule(
            rule=config.topology or "rigl",
            interval=config.update_interval
            or automatic_interval(INTERVAL_SHARE, lengths[0], (stop or 1.0) * min(lengths)),
            drop=config.drop or 0.5,
            schedule=config.drop_schedule or "constant",
            stop=stop,
        )
    rate = LearningRate(STEPS_DOWN, warmup * members)
    return [
        Phase(f"member {number}", length, rate, topology, fresh=True, save=True)
        for number, length in enumerate(lengths, 1)
    ]


def refinement_stop(config: Config) -> float | None:
    """Return the share of a phase that ends in a ticket after which topology is fixed."""
    if config.stop is not None:
        return config.stop
    return None if config.select == "validation" else 0.75
