"""Networks that start with finer blocks and are cut into coarser ones: --start-block, --coarsen-at.

A phase that begins with a fresh network is cut into stretches, which keep its schedules; after all
but the last the strongest coarser blocks stay (coarsening.py). Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from sparse_engine.actions import Fresh
from sparse_engine.blocks import AUTOMATIC_WIDTHS, parse_block
from sparse_engine.config import Config
from sparse_engine.cuts import Coarsen
from sparse_engine.errors import InputError
from sparse_engine.learning_rate import Part
from sparse_engine.phases import Phase, split_steps

METHODS = ("static", "set", "rigl", "dst-ensemble", "edst", "sup-tickets")
RULES = ("static", "set", "rigl")
USUAL_SHARE = "0.25"


def check_fine_start(config: Config) -> None:
    """Raise InputError for a resolved configuration whose blocks cannot become coarser."""
    if config.start_block is None:
        if config.coarsen_at is not None:
            raise InputError("--coarsen-at needs --start-block BOxBC, the blocks to begin with")
        return
    if config.method not in METHODS or config.topology not in RULES:
        what = config.method if config.method not in METHODS else f"topology '{config.topology}'"
        raise InputError(
            f"--start-block is for methods {', '.join(METHODS)} with topology static, set or rigl; "
            f"found {what}"
        )
    if config.sparsity == 0 or "*" in (config.layer_blocks or {}):
        what = "--layer-blocks names all layers" if config.sparsity else "sparsity 0 has no blocks"
        raise InputError(f"{what}: leave --start-block out")
    if config.parallel == "members":
        raise InputError("--parallel members has a phase for each member: leave --start-block out")
    stages(config)


def stages(config: Config) -> list[str]:
    """Return the blocks of each stretch: --start-block, doubling steps evenly spread, --block."""
    start, final = parse_block(config.start_block or ""), parse_block(config.block or "")
    count = len(shares(config))
    if isinstance(start, str) or (isinstance(final, str) and count > 1):
        flag = "--start-block" if isinstance(start, str) else "--block"
        raise InputError(f"{flag} auto is no size to count doublings from; use BOxBC")
    widest = (AUTOMATIC_WIDTHS[-1],) * 2 if isinstance(final, str) else final
    if start == final or any(w % s for s, w in zip(start, widest)):
        raise InputError(
            f"--start-block {config.start_block} should be finer than --block {config.block} and "
            "divide it"
        )
    if count == 1:
        return [f"{start[0]}x{start[1]}", config.block or ""]
    doublings = [math.log2(w / s) for s, w in zip(start, widest)]
    if count > max(doublings) or not all(d.is_integer() for d in doublings):
        raise InputError(
            f"--coarsen-at {config.coarsen_at} has {count} shares: from --start-block "
            f"{config.start_block} to --block {config.block} there should be as many doublings or "
            "more; use fewer shares, or other blocks"
        )
    sizes = [
        [s * 2 ** round(d * stage / count) for s, d in zip(start, doublings)]
        for stage in range(count + 1)
    ]
    return [f"{bo}x{bc}" for bo, bc in sizes]


def shares(config: Config) -> list[float]:
    """Return the shares of a phase after which blocks become coarser."""
    text = config.coarsen_at or USUAL_SHARE
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(a < b for a, b in pairwise([0.0, *found, 1.0])):
        raise InputError(
            "coarsen_at should be rising shares between 0 and 1, such as 0.25 or 0.1,0.3; "
            f"found '{text}'"
        )
    return found


def coarsening(config: Config, phases: Sequence[Phase]) -> list[Phase]:
    """Return the phases with those cut that begin with a fresh network."""
    found = []
    for phase in phases:
        fresh = any(isinstance(action, Fresh) for action in phase.begin)
        found += _stretches(config, phase) if fresh else [phase]
    return found


def _stretches(config: Config, phase: Phase) -> list[Phase]:
    blocks, edges = stages(config), [0.0, *shares(config), 1.0]
    steps = split_steps(phase.steps, [b - a for a, b in pairwise(edges)])
    found = [_stretch(phase, sum(steps[:i]), length) for i, length in enumerate(steps)]
    for i, (block, coarser) in enumerate(pairwise(blocks)):
        name = f"{phase.name} {block}"
        found[i] = replace(found[i], name=name, end=(Coarsen(coarser),))
    found[1:] = [replace(part, begin=()) for part in found[1:]]
    return found


def _stretch(phase: Phase, skip: int, steps: int) -> Phase:
    """Return a part of a phase, with its schedules as they are there."""
    topology = phase.topology and replace(phase.topology, skip=skip, whole=phase.steps)
    rate = Part(phase.learning_rate, skip, phase.steps)
    return replace(phase, steps=steps, learning_rate=rate, topology=topology)
