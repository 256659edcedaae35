"""Resolved settings of a method on CIFAR-10, and its phases."""

from sparse_engine.config.config import Config
from sparse_engine.methods.phase import Phase
from sparse_engine.methods.registry import build_phases
from sparse_engine.methods.resolve import resolve

NEEDED = {"kd-ticket": {"teacher": "run"}, "mc-dropout": {"dropout": 0.1}}


def config_for(**settings) -> Config:
    needed = NEEDED.get(settings.get("method"), {})
    return resolve(Config(**{"dataset": "cifar10", **needed, **settings}))


def phases_for(steps: int, **settings) -> list[Phase]:
    return build_phases(config_for(**settings), steps)
