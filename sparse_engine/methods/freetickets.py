"""The schedules of FreeTickets (Liu et al. 2022, appendix C), as shares that scale with a run."""

import math
from dataclasses import dataclass

from sparse_engine.config.config import Config
from sparse_engine.methods.phase import TopologyRule, automatic_interval

# The share of weights that an update replaces.
DROP = 0.5
Milestones = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Schedule:
    """One data set's schedule.

    explore, refine: epochs of EDST's exploration and of one refinement.
    refinement, member: learning rates of a refinement and of one network of a DST ensemble.
    explore_interval, member_interval: steps between updates / steps of the exploration, or of
        one network of a DST ensemble.
    drop_schedule: of the drop rate, which starts at DROP.
    """

    explore: int
    refine: int
    refinement: Milestones
    member: Milestones
    explore_interval: float
    member_interval: float
    drop_schedule: str


# 352 steps an epoch: 45,000 images in batches of 128.
CIFAR = Schedule(
    explore=150,
    refine=100,
    refinement=((0.0, 0.1), (0.5, 0.01)),
    member=((0.0, 1.0), (0.5, 0.1), (0.75, 0.01)),
    explore_interval=1000 / (150 * 352),
    member_interval=1000 / (250 * 352),
    drop_schedule="constant",
)
# 10,009 steps an epoch: two devices with 64 images each.
IMAGENET = Schedule(
    explore=30,
    refine=70,
    refinement=((0.0, 0.1), (30 / 70, 0.01), (60 / 70, 0.001)),
    member=((0.0, 1.0), (0.3, 0.1), (0.6, 0.01), (0.9, 0.001)),
    explore_interval=4000 / (30 * 10_009),
    member_interval=4000 / (200 * 10_009),
    drop_schedule="cosine",
)


def schedule_for(dataset: str) -> Schedule:
    """Return ImageNet's schedule for `imagenet`, CIFAR's for anything else."""
    return IMAGENET if dataset == "imagenet" else CIFAR


def refinement(schedule: Schedule, restart: float) -> Milestones:
    """Return the learning rates of one refinement of EDST.

    restart: of its first steps, as a multiple of the highest; from there it falls tenfold, in equal
        parts, until it is 0.01 or less (a warm restart, Loshchilov & Hutter 2017). Where the
        paper begins, its milestones.
    """
    if restart == schedule.refinement[0][1]:
        return schedule.refinement
    falls = max(0, math.ceil(math.log10(restart / 0.01) - 1e-9))
    return tuple((fall / (falls + 1), restart / 10**fall) for fall in range(falls + 1))


def ticket_stop(config: Config) -> float | None:
    """Return the share of a phase that ends in a ticket after which topology is fixed.

    A ticket taken right after an update is worse, so unless the best epoch is chosen on
    validation data, updates stop at 75 %.
    """
    if config.stop is not None:
        return config.stop
    return None if config.select == "validation" else 0.75


def topology_rule(config: Config, scaled_interval: float, shortest: int) -> TopologyRule | None:
    """Return the updates of a phase that ends in a ticket, None for static topology.

    Args:
        config: resolved.
        scaled_interval: steps between updates, as the recipe scales to this run.
        shortest: steps of the shortest phase that has updates.
    """
    if config.topology == "static":
        return None
    stop = ticket_stop(config)
    automatic = automatic_interval(scaled_interval, (stop or 1.0) * shortest)
    return TopologyRule(
        rule=config.topology or "rigl",
        interval=config.update_interval or automatic,
        drop=config.drop or DROP,
        schedule=config.drop_schedule or schedule_for(config.dataset).drop_schedule,
        stop=stop,
    )
