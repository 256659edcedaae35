"""Times of a sequence of phases: what takes turns, on which clock, and the quantiles.

A CPU is timed by the process's own CPU time when there is one thread, which other processes
disturb little. A GPU is timed by events on its stream, read after all rounds, so that launches run
ahead as they do in training; what is too short for that, a single layer's pass, is captured first.
"""

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from sparse_engine.training import cuda_graph

Key = TypeVar("Key", bound=Hashable)
Phases = Mapping[str, Callable[[], Any]]
STEP = "step"  # all phases of a variant together
FLUSH = 2**28  # bytes; twice the L2 of the largest GPU there is


class Clock(NamedTuple):
    """How a device's time is taken: `mark` a moment; `seconds` between two of them."""

    mark: Callable[[], Any]
    seconds: Callable[[Any, Any], float]
    finish: Callable[[], None]


WALL = Clock(time.perf_counter, lambda a, b: b - a, lambda: None)


def clock_of(device: str) -> Clock:
    """Return the clock of a device."""
    if device == "cuda":
        return Clock(_event, lambda a, b: a.elapsed_time(b) / 1e3, torch.cuda.synchronize)
    return WALL._replace(mark=time.process_time) if torch.get_num_threads() == 1 else WALL


def in_turn(
    variants: Mapping[Key, Phases], rounds: int, clock: Clock, warm_up: int = 1
) -> dict[Key, dict[str, list[float]]]:
    """Run all phases of every variant in turn, and time them.

    Args:
        variants: their phases by name.
        rounds: that are kept.
        clock: of the device.
        warm_up: rounds before, which are not.

    Returns:
        Seconds of each phase in each round, and of all together as the phase "step".
    """
    marks: dict[Key, list[list[Any]]] = {name: [] for name in variants}
    for number in range(warm_up + rounds):
        for name, phases in variants.items():
            moments = [clock.mark()]
            for run in phases.values():
                run()
                moments.append(clock.mark())
            if number >= warm_up:
                marks[name].append(moments)
    clock.finish()
    return {name: _phases(variants[name], rounds, clock) for name, rounds in marks.items()}


def steps_in_turn(
    steps: Mapping[Key, Callable[[], Any]], rounds: int, clock: Clock, warm_up: int = 1
) -> dict[Key, list[float]]:
    """Return the seconds of each round of functions that take turns, by name; see in_turn."""
    times = in_turn({name: {STEP: run} for name, run in steps.items()}, rounds, clock, warm_up)
    return {name: phases[STEP] for name, phases in times.items()}


def replays(passes: Mapping[Key, Callable[[], Any]]) -> dict[Key, Callable[[], None] | Exception]:
    """Return what replays each function's CUDA graph, or why it cannot be captured.

    The functions are warmed up first, on a stream of their own.
    """
    graphs: dict[Key, Callable[[], None] | Exception] = {}
    for key, run in passes.items():
        try:
            for _ in range(cuda_graph.WARMUP):
                cuda_graph.on_side_stream(run)
            graphs[key], _ = cuda_graph.record(run)
        except Exception as error:
            graphs[key] = error
    return graphs


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
    spans = {STEP: (0, -1)} | {n: (place, place + 1) for place, n in enumerate(phases) if n != STEP}
    return {
        name: [clock.seconds(marks[first], marks[last]) for marks in rounds]
        for name, (first, last) in spans.items()
    }


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile, interpolated linearly."""
    return float(np.quantile(values, share))


def speeds(seconds: Sequence[float], flops: float, share: float) -> dict[str, float | None]:
    """Return the columns n, p20_ms, p50_ms, p80_ms, and of rates, None where there are no FLOPs.

    Args:
        seconds: of some repetitions.
        flops: that the dense network or layer would need for one.
        share: of them that are promised.
    """
    times = {f"p{q}_ms": 1e3 * quantile(seconds, q / 100) for q in (20, 50, 80)}
    rate = flops / (1e-3 * times["p50_ms"]) / 1e12
    rates = {"tflops": rate * share or None, "dense_tflops": rate or None}
    return {"n": len(seconds), **times, "flops_ratio": share, **rates}


def ratios(seconds: Sequence[float], dense: Sequence[float]) -> dict[str, float]:
    """Return the columns ratio_p20 and ratio_p80 of rounds that both took part in."""
    each = [ours / theirs for ours, theirs in zip(seconds, dense)]
    return {f"ratio_p{q}": quantile(each, q / 100) for q in (20, 80)}


def time_text(seconds: Sequence[float]) -> str:
    """Return the median in ms and, in brackets, the 20th and 80th percentile."""
    low, middle, high = (f"{1e3 * quantile(seconds, q / 100):.3g}" for q in (20, 50, 80))
    return f"{middle} ({low}-{high})"


def ratio_text(seconds: Sequence[float], dense: Sequence[float], digits: int = 2) -> str:
    """Return the ratio of medians and, in brackets, percentiles of the rounds' own ratios."""
    low, high = ratios(seconds, dense).values()
    middle = quantile(seconds, 0.5) / quantile(dense, 0.5)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
