"""Settings that belong to some methods only, and what they are there when nobody says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.layers.blocks import DENSE
from sparse_engine.methods.lottery import usual_rounds
from sparse_engine.methods.sup_tickets import cycles_for
from sparse_engine.models.catalog import stage_count

Default = Any | Callable[[Config], Any]


def usual_scope(config: Config) -> str:
    """Return "global", as the papers rank, for single weights, and "layer" for blocks.

    A block's mean hides how its weights differ within a layer, so between layers their scale
    alone would decide: whole layers would fall to one block.
    """
    blocks = {config.block, *(config.layer_blocks or {}).values()}
    return "global" if blocks - {DENSE} == {"1x1"} else "layer"


_PRUNING = {"prune_scope": usual_scope}
_REWINDING = {"rewind_point": 0.05, **_PRUNING}
DEFAULTS: dict[str, dict[str, Default]] = {
    "edst": {"escape": 0.8},
    "sup-tickets": {
        "escape": 0.5,
        "cycles": lambda config: cycles_for(config.dataset).count,
        "averaging": "caa",
        **_PRUNING,
    },
    "lottery": {"rounds": usual_rounds, "rewind": "weights", **_REWINDING},
    "ltr": {"rounds": 20, **_REWINDING},
    "pf": _PRUNING,
    # Temperature and weight are Hinton et al.'s (2015): the KD-ticket paper's could not be read.
    "kd-ticket": {
        "teacher": None,
        "temperature": 4.0,
        "distillation": 0.9,
        **_REWINDING,
        "rewind_point": 0.0,
    },
    "mc-dropout": {"passes": 10},
    "mimo": {"batch_repetition": 1, "input_repetition": 0.0},
    "treenet": {"shared_stages": lambda config: stage_count(config.model) - 1},
}
OWNED = sorted({name for settings in DEFAULTS.values() for name in settings})


def method_options(config: Config) -> dict[str, Any]:
    """Return the method's own settings, decided.

    Raises:
        InputError: a setting that this method does not have.
    """
    own = DEFAULTS.get(config.method, {})
    for name in OWNED:
        if name not in own and getattr(config, name) is not None:
            users = ", ".join(method for method, names in DEFAULTS.items() if name in names)
            raise InputError(
                f"method '{config.method}' has no --{name.replace('_', '-')}, "
                f"which belongs to {users}"
            )
    chosen = {}
    for name, default in own.items():
        given = getattr(config, name)
        usual = default(config) if callable(default) else default
        chosen[name] = usual if given is None else given
    return chosen
