"""Figures of the reports, as small PNG files, with matplotlib; imports no torch."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.report.records import Row, is_dense
from bench.report.tables import time_ratio, whole_steps

PARTS = ("forward", "backward", "optimizer", "topology update")


def draw_all(rows: Sequence[Row], target: Path, prefix: str) -> list[Path]:
    """Draw every figure of one device that there are rows for; return the files."""
    training, steps = [row for row in rows if row["report"] == "training"], whole_steps(rows)
    figures: dict[str, tuple[Sequence[Row], Callable[[Any, Sequence[Row]], None]]] = {
        "speedup": ([row for row in steps if row["sparsity"]], draw_speedups),
        "breakdown": (training, draw_breakdown),
        "memory": (steps, draw_memory),
    }
    return [
        _save(partial(draw, rows=chosen), len(steps), target / f"{prefix}-{name}.png")
        for name, (chosen, draw) in figures.items()
        if chosen
    ]


def draw_speedups(axes: Any, rows: Sequence[Row]) -> None:
    """Draw the speed-up of whole steps against density, and where it passes 1."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["dense_ms"]:
            name = f"{row['subject']} {row['contender']} {row['distribution']} {row['block']}"
            lines.setdefault(name, []).append((float(row["density"]), 1 / time_ratio(row)))
    for name, points in lines.items():
        points.sort()
        drawn = axes.plot(*zip(*points), marker="o", label=name)
        if density := break_even(points):
            axes.axvline(density, color=drawn[0].get_color(), linestyle=":")
    axes.axhline(1, color="gray", linestyle="--")
    axes.set(xscale="log", xlabel="density (dotted: break-even)", ylabel="speed-up over best dense")
    axes.legend(fontsize=6)


def break_even(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the density at which the speed-up passes 1, between points sorted by density.

    It is interpolated on logarithms; None where no two neighbours lie on both sides.
    """
    for (low, fast), (high, slow) in itertools.pairwise(points):
        if fast >= 1 > slow:
            share = math.log(fast) / (math.log(fast) - math.log(slow))
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return None


def draw_breakdown(axes: Any, rows: Sequence[Row]) -> None:
    """Draw what the phases of each step take, as bars; whole steps where they are captured."""
    names = list(dict.fromkeys(_name(row) for row in rows))
    times = {(_name(row), row["phase"]): float(row["p50_ms"]) for row in rows}
    left = dict.fromkeys(names, 0.0)
    for part in PARTS:
        widths = [times.get((name, part), 0.0) for name in names]
        axes.barh(names, widths, left=list(left.values()), label=part)
        left = {name: left[name] + width for name, width in zip(names, widths)}
    whole = [0.0 if left[n] else times.get((n, "step"), 0.0) for n in names]
    if any(whole):
        axes.barh(names, whole, label="whole step")
    _finish_bars(axes, "ms")


def draw_memory(axes: Any, rows: Sequence[Row]) -> None:
    """Draw parameters, gradients and optimizer state, and the peak where it is known."""
    names = [_name(row) for row in rows]
    for column, label, height in (("peak_mb", "peak", 0.8), ("state_mb", "state", 0.5)):
        axes.barh(names, [float(row[column] or 0) for row in rows], height=height, label=label)
    _finish_bars(axes, "MB (state: parameters, gradients, optimizer)")


def _finish_bars(axes: Any, unit: str) -> None:
    axes.invert_yaxis()
    axes.set(xlabel=unit)
    axes.tick_params(axis="y", labelsize=6)
    axes.legend(fontsize=6)


def _name(row: Row) -> str:
    blocks = "" if is_dense(row) else f" {row['sparsity']} {row['distribution']} {row['block']}"
    return f"{row['subject']} {row['contender']}{blocks}"


def _save(draw: Callable[[Any], None], bars: int, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, max(4.0, 0.2 * bars)), layout="constrained")
    draw(figure.subplots())
    figure.savefig(path, dpi=80)
    return path
