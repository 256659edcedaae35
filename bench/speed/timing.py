"""Times of a sequence of phases: what takes turns, on which clock, and the quantiles.

A CPU is timed by the process's own CPU time when there is one thread, which other processes
disturb little. A GPU is timed by events on its stream, read after all rounds, so that launches run
ahead as they do in training; what is too short for that, a single layer's pass, is captured first.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from sparse_engine.training import cuda_graph

Key = TypeVar("Key", bound=Hashable)
Phases = Mapping[str, Callable[[], Any]]
Times = dict[str, dict[str, list[float]]]  # seconds by contender, phase and round
STEP = "step"  # all phases of a contender together
FLUSH = 2**28  # bytes; twice the L2 of the largest GPU there is


class Clock(NamedTuple):
    """How a device's time is taken: `mark` a moment; `seconds` between two of them."""

    mark: Callable[[], Any]
    seconds: Callable[[Any, Any], float]
    finish: Callable[[], None]


def clock_of(device: str, threads: int = 1) -> Clock:
    """Return the clock of a device."""
    if device == "cuda":
        return Clock(_event, lambda a, b: a.elapsed_time(b) / 1e3, torch.cuda.synchronize)
    read = time.process_time if threads == 1 else time.perf_counter
    return Clock(read, lambda a, b: b - a, lambda: None)


def in_turn(contenders: Mapping[str, Phases], rounds: int, clock: Clock, warm_up: int = 1) -> Times:
    """Run all phases of every contender in turn, and time them.

    Args:
        contenders: by name.
        rounds: that are kept.
        clock: of the device.
        warm_up: rounds before, which are not.

    Returns:
        Seconds of each phase in each round, and of all together as the phase "step".
    """
    marks: dict[str, list[list[Any]]] = {name: [] for name in contenders}
    for number in range(warm_up + rounds):
        for name, phases in contenders.items():
            taken = [clock.mark()]
            for run in phases.values():
                run()
                taken.append(clock.mark())
            if number >= warm_up:
                marks[name].append(taken)
    clock.finish()
    return {name: _phases(contenders[name], taken, clock) for name, taken in marks.items()}


def replays(passes: Mapping[Key, Callable[[], Any]]) -> dict[Key, Callable[[], None] | Exception]:
    """Return what replays each function's CUDA graph, or why it cannot be captured.

    The functions are warmed up first, on a stream of their own.
    """
    found: dict[Key, Callable[[], None] | Exception] = {}
    for key, run in passes.items():
        try:
            for _ in range(cuda_graph.WARMUP):
                cuda_graph.on_side_stream(run)
            found[key], _ = cuda_graph.record(run)
        except Exception as error:
            found[key] = error
    return found


def cold(passes: Mapping[Key, Callable[[], Any]], rounds: int) -> dict[Key, list[float]]:
    """Return the seconds of functions on a GPU that take turns, each with cold caches.

    Before each repetition a buffer larger than L2 is written, behind which the launches of the host
    hide: what is timed should be one launch, such as a graph's. The order is another in every
    round, so that nobody always comes behind the same neighbour.
    """
    flush, generator = torch.empty(FLUSH, dtype=torch.int8, device="cuda"), random.Random(0)
    marks: dict[Key, list[tuple[Any, Any]]] = {key: [] for key in passes}
    for _ in range(rounds):
        for key in generator.sample(list(passes), len(passes)):
            flush.zero_()
            begin = _event()
            passes[key]()
            marks[key].append((begin, _event()))
    torch.cuda.synchronize()
    return {key: [a.elapsed_time(b) / 1e3 for a, b in pairs] for key, pairs in marks.items()}


def _phases(phases: Phases, rounds: Sequence[list[Any]], clock: Clock) -> dict[str, list[float]]:
    found = {STEP: [clock.seconds(marks[0], marks[-1]) for marks in rounds]}
    for place, name in enumerate(phases):
        if name != STEP:
            found[name] = [clock.seconds(marks[place], marks[place + 1]) for marks in rounds]
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile, interpolated linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return the columns n, p20_ms, p50_ms and p80_ms."""
    found = {f"p{q}_ms": 1e3 * quantile(seconds, q / 100) for q in (20, 50, 80)}
    return {"n": len(seconds), **found}


def ratios(seconds: Sequence[float], dense: Sequence[float]) -> dict[str, float]:
    """Return the columns ratio_p20 and ratio_p80 of rounds that both took part in."""
    each = [ours / theirs for ours, theirs in zip(seconds, dense)]
    return {f"ratio_p{q}": quantile(each, q / 100) for q in (20, 80)}


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
