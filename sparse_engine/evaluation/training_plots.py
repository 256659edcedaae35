"""Figures of how runs were trained: curves with phases and tickets, and blocks that stayed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sparse_engine.errors import InputError
from sparse_engine.figures.style import (
    BLUE,
    GREEN,
    GREY,
    PALE,
    SHARES,
    SIZES,
    VERMILLION,
    blank,
    entries_of,
    legend_below,
)
from sparse_engine.methods.actions import Escape
from sparse_engine.methods.independent import as_one, is_grouped
from sparse_engine.methods.phase import Phase
from sparse_engine.methods.registry import build_phases
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs.epoch_rows import BLOCK_COLUMNS, COLUMNS, BlockRow, whole_rows
from sparse_engine.runs.run_folder import RunFolder

T = TypeVar("T")
_LETTERS = {"fontsize": SIZES["small"], "color": GREY, "va": "bottom"}
_MOST_NAMED = 6  # phases whose names stand above the curves


class Point(NamedTuple):
    """What the figure shows of an epoch, or of the part of one that belongs to a phase."""

    step: int
    phase: str
    train_loss: float
    accuracy: float | None


class Stretch(NamedTuple):
    """A phase: its name, the steps before it and at its end.

    is_fresh: whether it begins with another network; tickets, escapes: what happens at its end.
    """

    name: str
    first: int
    last: int
    is_fresh: bool = False
    tickets: int = 0
    escapes: bool = False


@dataclass(frozen=True)
class ToldRun:
    """A run as its files tell it; `split` is the one that accuracy is of."""

    name: str
    split: str
    points: list[Point]
    stretches: list[Stretch]
    blocks: list[BlockRow]


def told_runs(runs: Sequence[str]) -> list[ToldRun]:
    """Return how each run was trained that has a metrics.csv with rows.

    Raises:
        InputError: a file of a run is damaged.
    """
    found = [(run, *_read(Path(run) / "metrics.csv", _point)) for run in runs]
    return [
        ToldRun(
            Path(run).resolve().name,
            rows[-1]["split"],
            points,
            _stretches(run, points),
            _read(Path(run) / "blocks.csv", _block_row, BLOCK_COLUMNS)[1],
        )
        for run, rows, points in found
        if rows
    ]


def _read(
    path: Path, make: Callable[[Mapping[str, str]], T], columns: Sequence[str] = COLUMNS
) -> tuple[list[dict[str, str]], list[T]]:
    """Return the rows of a file as texts, and what is made of each; none where there is no file."""
    rows = whole_rows(path, columns) if path.is_file() else []
    try:
        return rows, [make(row) for row in rows]
    except ValueError:
        raise InputError(f"'{path}' is damaged; move it away to draw the rest") from None


def _point(row: Mapping[str, str]) -> Point:
    accuracy = float(row["accuracy"]) if row["accuracy"] else None
    return Point(int(row["step"]), row["phase"], float(row["train_loss"]), accuracy)


def _block_row(row: Mapping[str, str]) -> BlockRow:
    numbers = (float(row[name]) for name in ("density", "kept", "explored"))
    return BlockRow(int(row["step"]), row["layer"], *numbers)


def _stretches(run: str, points: Sequence[Point]) -> list[Stretch]:
    """Return the phases of a run, each up to the last row that names it."""
    grouped = itertools.groupby(points, lambda point: point.phase)
    ends = [(name, [*group][-1].step) for name, group in grouped]
    firsts = [0, *(last for _, last in ends)]
    phases = {phase.name: phase for phase in _phases(run, points[-1].step)}
    # A run that has not ended may be anywhere in its last phase.
    over = len(ends) - (not (Path(run) / "metrics.json").exists())
    stretches = []
    for number, ((name, last), first) in enumerate(zip(ends, firsts)):
        stretch = Stretch(name, first, last)
        if phase := phases.get(name):
            stretch = stretch._replace(is_fresh=any(a.starts_member for a in phase.begin))
            if number < over:
                escapes = any(isinstance(action, Escape) for action in phase.end)
                stretch = stretch._replace(tickets=phase.tickets, escapes=escapes)
        stretches.append(stretch)
    return stretches


def _phases(run: str, steps: int) -> list[Phase]:
    """Return the phases of a run's configuration; none where it cannot be followed any more."""
    try:
        config = resolve(replace(RunFolder.existing(run).config(), backend="auto", device="auto"))
        phases = build_phases(config, steps)
    except InputError:
        return []
    return [as_one(phases)] if is_grouped(config) else phases


def draw_training(axes: Sequence[Any], runs: Sequence[ToldRun]) -> None:
    """Draw each run's loss and held-out accuracy against its steps, on two axes a run.

    Phases are told apart by their ground; tickets and escapes are marked at their ends.
    """
    for run, loss, accuracy in zip(runs, axes[::2], axes[1::2]):
        names = {"train_loss": "training loss", "accuracy": f"{run.split} accuracy"}
        for axis, (column, name) in zip((loss, accuracy), names.items()):
            for curve in _curves(run):
                values = ((point.step, getattr(point, column)) for point in curve)
                axis.plot(*zip(*((s, v) for s, v in values if v is not None)), color=BLUE)
            axis.grid(axis="y")
            axis.set(xlabel="step", ylabel=name, xlim=(0, run.points[-1].step))
            _mark_phases(axis, run.stretches)
        _mark_tickets(accuracy, run)
        loss.set_title(run.name, loc="left", pad=22)
    legend_below(axes[0].figure, entries_of(axes))


def _curves(run: ToldRun) -> list[list[Point]]:
    """Return the points of each network that the run has trained, one after another."""
    starts = [stretch.first for stretch in run.stretches if stretch.is_fresh] or [0]
    curves = itertools.groupby(run.points, lambda point: sum(s < point.step for s in starts))
    return [list(curve) for _, curve in curves]


def _mark_phases(axes: Any, stretches: Sequence[Stretch]) -> None:
    """Give every second phase a darker ground, name phases above it, and mark escapes."""
    for stretch in stretches[1::2]:
        axes.axvspan(stretch.first, stretch.last, color=PALE, zorder=0)
    _name_phases(axes, stretches)
    _mark_ends(axes, [stretch for stretch in stretches if stretch.escapes])


def _name_phases(axes: Any, stretches: Sequence[Stretch]) -> None:
    """Write the names of phases above axes, where there is room."""
    for stretch in stretches if len(stretches) <= _MOST_NAMED else ():
        place, above = (stretch.first + stretch.last) / 2, axes.get_xaxis_transform()
        axes.text(place, 1.01, stretch.name, transform=above, ha="center", **_LETTERS)


def _mark_ends(axes: Any, stretches: Sequence[Stretch]) -> None:
    """Draw a line at the ends of phases, those with an escape in another colour."""
    for stretch in stretches:
        name, colour = ("escape", VERMILLION) if stretch.escapes else ("end of a phase", GREY)
        axes.axvline(stretch.last, linestyle=":", color=colour, label=name)


def _mark_tickets(axes: Any, run: ToldRun) -> None:
    """Mark where tickets were saved, on the curve of accuracy."""
    values = {point.step: point.accuracy for point in run.points}
    ends = [stretch.last for stretch in run.stretches if stretch.tickets]
    look = {"linestyle": "none", "marker": "*", "markersize": 14, "color": GREEN, "zorder": 3}
    if ends:
        axes.plot(ends, [values[end] for end in ends], **look, clip_on=False, label="ticket saved")


def draw_kept(axes: Sequence[Any], runs: Sequence[ToldRun]) -> None:
    """Draw by layer and step which share of the first blocks is left, on two axes a run.

    The second shows the share of a layer's blocks that were ever active. At the right of each
    picture is what it ends with.
    """
    for run, *pair in zip(runs, axes[::2], axes[1::2]):
        layers = list(dict.fromkeys(row.layer for row in run.blocks))
        edges = [0, *sorted({point.step for point in run.points})]
        titles = ("share of the first blocks still active", "share of all blocks ever active")
        for axis, name, title in zip(pair, ("kept", "explored"), titles):
            _draw_by_layer(axis, run, name, layers, edges)
            axis.set_title(title if len(runs) == 1 else f"{run.name}: {title}", pad=20)
            _mark_ends(axis, run.stretches[:-1])
            _name_phases(axis, run.stretches)
        pair[0].set_yticks([place + 0.5 for place in range(len(layers))], layers)
    legend_below(axes[0].figure, entries_of(axes))


def _draw_by_layer(
    axes: Any, run: ToldRun, name: str, layers: Sequence[str], edges: Sequence[int]
) -> None:
    shares = {(row.layer, row.step): getattr(row, name) for row in run.blocks}
    image = [[shares.get((n, step), float("nan")) for step in edges[1:]] for n in layers]
    axes.set_facecolor(PALE)
    axes.pcolormesh(edges, range(len(layers) + 1), image, cmap=SHARES, vmin=0, vmax=1)
    axes.set(xlabel="step", xlim=(0, edges[-1]), ylim=(len(layers), 0))
    last = axes.secondary_yaxis("right")
    places = [place + 0.5 for place in range(len(layers))]
    last.set_yticks(places, [f"{row[-1]:.2f}" for row in image])
    for axis in (axes, last):
        blank(axis)
    axes.text(1.01, 1.01, "end", transform=axes.transAxes, **_LETTERS)
