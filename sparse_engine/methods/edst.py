"""EDST: M tickets from one run (FreeTickets, Liu et al. 2022, Alg. 3 and app. C).

Exploration at the high learning rate, then M refinements at a tenth and, from half of each, a
hundredth of it. Updates go on throughout; after each ticket an escape replaces the share q of all
blocks. Exploration : refinement is 150 : 100 epochs on CIFAR; on ImageNet 30 : 70, the rate of a
refinement falling at 30 and 60 of its 70 epochs.
"""

from sparse_engine.config import Config
from sparse_engine.methods.dst_ensemble import refinement_stop
from sparse_engine.phases import LearningRate, Phase, TopologyRule, automatic_interval, split_steps

INTERVAL_SHARE = 1000 / 158_400
REFINEMENT = ((0.0, 0.1), (0.5, 0.01))
IMAGENET_REFINEMENT = ((0.0, 0.1), (30 / 70, 0.01), (60 / 70, 0.001))


def proportions(dataset: str) -> tuple[int, int]:
    """Return epochs of the exploration and of one refinement in the paper's recipe."""
    return (30, 70) if dataset == "imagenet" else (150, 100)


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return exploration and M refinements."""
    members = config.members or 1
    explore, refine = proportions(config.dataset)
    lengths = split_steps(steps, [explore, *[refine] * members])
    stop = refinement_stop(config)
    interval = config.update_interval or automatic_interval(
        INTERVAL_SHARE, steps, (stop or 1.0) * min(lengths)
    )

    def topology(share: float | None) -> TopologyRule | None:
        if config.topology == "static":
            return None
        return TopologyRule(
            config.topology or "rigl",
            interval,
            config.drop or 0.5,
            config.drop_schedule or "constant",
            share,
        )

    warm = LearningRate(warmup=warmup * steps / lengths[0])
    refinement = LearningRate(IMAGENET_REFINEMENT if config.dataset == "imagenet" else REFINEMENT)
    tickets = [
        Phase(
            f"refine {number}",
            length,
            refinement,
            topology(stop),
            save=True,
            escape=config.escape if number < members else None,
        )
        for number, length in enumerate(lengths[1:], 1)
    ]
    return [Phase("explore", lengths[0], warm, topology(None), fresh=True), *tickets]
