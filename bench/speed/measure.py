"""Times, energy and memory of what takes turns on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench.speed.energy import joules_a_round
from bench.speed.timing import STEP, Key, Phases, clock_of, in_turn

SECONDS = 1.2  # of GPU time that a variant's rounds take together
ROUNDS = (8, 40)  # fewest and most of them


def measure(
    phases: Mapping[Key, Phases], device: str, rounds: int
) -> tuple[dict[Key, dict[str, list[float]]], float | None]:
    """Return the times of variants that take turns, and the joules of a step where they are known.

    Args:
        phases: by variant; on a GPU one at a time, so that it has the memory for itself.
        device: "cuda" or "cpu".
        rounds: on a CPU; on a GPU as many as fit a second.
    """
    clock = clock_of(device)
    if device == "cpu":
        return in_turn(phases, rounds, clock), None
    first = in_turn(phases, 2, clock)
    longest = max(max(times[STEP]) for times in first.values())
    rounds = int(min(max(SECONDS / longest, ROUNDS[0]), ROUNDS[1]))
    times = in_turn(phases, rounds, clock, warm_up=0)
    if len(phases) > 1:
        return times, None

    def more() -> int:
        in_turn(phases, rounds, clock, warm_up=0)
        return rounds

    return times, joules_a_round(more)


def memory(device: str) -> int:
    """Return the bytes that tensors take on the GPU; 0 without one."""
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def peak_of(run: Callable[[], Any], device: str, before: int = 0) -> int | None:
    """Run something; return the peak of the GPU's memory above `before`, in bytes."""
    if device != "cuda":
        run()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
