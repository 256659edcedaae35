"""Figures of the reports, as small PNG files, with matplotlib; imports no torch."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.report.records import Row, is_dense
from bench.report.tables import time_ratio, whole_steps
from sparse_engine.figures.style import (
    BLUE,
    COLOURS,
    GREY,
    SIZES,
    SKY,
    entries_of,
    legend_below,
    save_figure,
)

PARTS = ("forward", "backward", "optimizer", "topology update")
NARROWER = "narrower dense network"
_WIDEST = 2  # panels beside each other
_VARIANTS = {"auto": "", "masked": ", masked"}
Draw = Callable[[Any, Sequence[Row]], None]


def draw_all(rows: Sequence[Row], target: Path, prefix: str) -> list[Path]:
    """Draw every figure of one device that there are rows for; return the files."""
    training, steps = [row for row in rows if row["report"] == "training"], whole_steps(rows)
    compared = [row for row in steps if row["sparsity"] and row["dense_ms"]]
    figures: dict[str, tuple[Sequence[Row], Callable[[Path, Sequence[Row]], None]]] = {
        "speedup": (compared, save_speedups),
        "breakdown": (training, partial(_save_bars, draw=draw_breakdown)),
        "memory": (steps, partial(_save_bars, draw=draw_memory)),
    }
    paths = []
    for name, (chosen, save) in figures.items():
        if chosen:
            paths.append(target / f"{prefix}-{name}.png")
            save(paths[-1], chosen)
    return paths


def by_network(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each network, by its name and batch in words."""
    networks: dict[str, list[Row]] = {}
    for row in rows:
        networks.setdefault(f"{row['subject']}, batch {row['batch']}", []).append(row)
    return networks


def save_speedups(path: Path, rows: Sequence[Row]) -> None:
    """Draw the speed-ups of whole steps, each network on axes of its own."""
    networks = by_network(rows)
    names = sorted(set(map(_variant, rows)), key=lambda name: (name == NARROWER, "masked" in name))
    colours = dict(zip(names, itertools.cycle(COLOURS)))
    columns = min(_WIDEST, len(networks))
    lines = -(-len(networks) // columns)

    def draw(axes: Sequence[Any]) -> None:
        for axis, (name, own) in zip(axes, networks.items()):
            draw_speedups(axis, own, colours)
            axis.set_title(name)
        for axis in axes[len(networks) :]:
            axis.set_axis_off()
        for axis in axes[::columns]:
            axis.set_ylabel("speed-up over the fastest dense")
        axes[0].set_ylim(0, None)
        legend_below(axes[0].figure, entries_of(axes))

    save_figure(path, draw, (1 + 4.3 * columns, 0.8 + 4 * lines), (lines, columns), sharey=True)


def draw_speedups(axes: Any, rows: Sequence[Row], colours: Mapping[str, Any]) -> None:
    """Draw the speed-up of whole steps against density, and where it passes 1.

    colours: by the name of a variant.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(_variant(row), []).append((float(row["density"]), 1 / time_ratio(row)))
    for name, points in sorted(lines.items(), key=lambda line: list(colours).index(line[0])):
        points.sort()
        axes.plot(*zip(*points), marker="o", color=colours[name], label=name)
        for density, speedup in points:
            place = {"xytext": (6, 5), "textcoords": "offset points"}
            axes.annotate(f"{speedup:.1f}", (density, speedup), fontsize=SIZES["small"], **place)
        if density := break_even(points):
            axes.axvline(density, color=colours[name], linestyle=":")
            place = {"rotation": 90, "va": "top", "ha": "right", "fontsize": SIZES["small"]}
            words = f"break-even at {density:.2g}"
            axes.text(density, 0.98, words, transform=axes.get_xaxis_transform(), **place)
    axes.axhline(1, color=GREY, linestyle="--", label="break-even: as fast as dense")
    axes.set(xscale="log", xlabel="density")
    places = sorted({round(1 - float(row["sparsity"]), 4) for row in rows})
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_xticks([], minor=True)
    axes.margins(x=0.2, y=0.1)
    axes.grid(axis="y")


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
    names = list(dict.fromkeys(map(_name, rows)))
    times = {(_name(row), row["phase"]): float(row["p50_ms"]) for row in rows}
    left = dict.fromkeys(names, 0.0)
    for part, colour in zip(PARTS, COLOURS):
        widths = [times.get((name, part), 0.0) for name in names]
        axes.barh(names, widths, left=list(left.values()), color=colour, label=part)
        left = {name: left[name] + width for name, width in zip(names, widths)}
    whole = [0.0 if left[n] else times.get((n, "step"), 0.0) for n in names]
    if any(whole):
        axes.barh(names, whole, color=SKY, label="whole step")
    axes.set_xlabel("ms")


def draw_memory(axes: Any, rows: Sequence[Row]) -> None:
    """Draw parameters, gradients and optimizer state, and the peak where it is known."""
    names = [_name(row) for row in rows]
    bars = (("peak_mb", "peak", 0.8, SKY), ("state_mb", "state", 0.5, BLUE))
    for column, label, height, colour in bars:
        if any(row[column] for row in rows):
            widths = [float(row[column] or 0) for row in rows]
            axes.barh(names, widths, height=height, color=colour, label=label)
    axes.set_xlabel("MB of parameters, gradients and optimizer state")


def _save_bars(path: Path, rows: Sequence[Row], draw: Draw) -> None:
    """Draw bars of every network, on axes one below the other."""
    networks = by_network(rows)
    heights = [1.0 + 0.32 * len(set(map(_name, own))) for own in networks.values()]

    def draw_networks(axes: Sequence[Any]) -> None:
        for axis, (name, own) in zip(axes, networks.items()):
            draw(axis, own)
            axis.set_title(name)
            axis.invert_yaxis()
            axis.grid(axis="x")
        entries = entries_of(axes)
        legend_below(axes[0].figure, entries if len(entries) > 1 else {})

    size, grid = (8.5, 0.5 + sum(heights)), (len(networks), 1)
    save_figure(path, draw_networks, size, grid, height_ratios=heights)


def _name(row: Row) -> str:
    """Return what a bar is called: a dense network, or a variant and its sparsity."""
    return row["contender"] if is_dense(row) else f"sparsity {row['sparsity']}, {_variant(row)}"


def _variant(row: Row) -> str:
    """Return what a variant is called: dense ones by their name, others by their blocks.

    A distribution is named if it is not the uniform one.
    """
    if row["contender"] == "slim":
        return NARROWER
    how = _VARIANTS.get(row["contender"], f", {row['contender']}")
    distribution = f", {row['distribution']}" * (row["distribution"] not in ("", "uniform"))
    return f"{row['block']} blocks{distribution}{how}"
