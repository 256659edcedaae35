"""Tables of a study: means over seeds, differences paired by seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.report.tables import markdown, with_block
from bench.study.figure import Labelled, draw
from bench.study.grid import Grid, Projection, Run, Study, name_of
from bench.study.machines import Machines, Rows, machines_table, time_cell, usual_times
from bench.study.times import read_times, time_of

HEAD = ("n", "accuracy %", "difference", "NLL", "ECE", "weights", "training FLOPs", "time / dense")
# What studies have besides whose tickets are evaluated: column of the CSV, its factor and digits.
BESIDES = {
    "members": ("members", 1, 0),
    "a member's accuracy %": ("member_accuracy", 100, 2),
    "disagreement": ("disagreement", 1, 3),
    "Brier": ("brier", 1, 3),
    "corrupted accuracy %": ("corrupted_accuracy", 100, 2),
    "foreign AUROC": ("foreign_auroc", 1, 3),
    "CPU minutes": ("cpu_seconds", 1 / 60, 1),
    "peak MB": ("peak_mb", 1, 0),
}


@dataclass(frozen=True)
class Point:
    """All seeds of one place on a grid that have a row."""

    place: tuple[tuple[str, Any], ...]
    rows: dict[int, Mapping[str, str]]
    time: Mapping[str, str] | None
    larger: Mapping[str, str] | None = None  # the time of the study's projection

    def values(self, column: str) -> list[float]:
        """Return a column, by seed."""
        return [float(row[column]) for row in self.rows.values()]

    def mean(self, column: str) -> float:
        """Return a column's mean."""
        return statistics.mean(self.values(column))

    @property
    def name(self) -> str:
        """The place in words."""
        return name_of(self.place)


def points_of(
    grid: Grid, rows: Rows, times: Rows, projection: Projection | None = None
) -> list[Point]:
    """Return the points of a grid, in its order, but those without any row."""
    by_place: dict[tuple[tuple[str, Any], ...], list[Run]] = {}
    for run in grid.runs:
        by_place.setdefault(run.point, []).append(run)
    points = []
    for place, runs in by_place.items():
        own = {run.seed: rows[run.key] for run in runs if run.key in rows}
        if own:
            settings = runs[0].settings
            larger = time_of(times, projection.of(settings)) if projection else None
            points.append(Point(place, own, time_of(times, settings), larger))
    return points


def difference(point: Point, points: Sequence[Point], against: Mapping[str, Any]) -> str:
    """Return the mean difference in accuracy, in points, and its standard error over seeds.

    Seeds that both have are paired: they share data order and, as far as blocks allow, weights.
    Empty for the point that others are compared with.
    """
    place = {**dict(point.place), **against}
    other = next((p for p in points if dict(p.place) == place), point)
    pairs = [(row, other.rows[seed]) for seed, row in point.rows.items() if seed in other.rows]
    if not against or other is point or not pairs:
        return ""
    each = [100 * (float(ours["accuracy"]) - float(theirs["accuracy"])) for ours, theirs in pairs]
    error = f" ± {statistics.stdev(each) / math.sqrt(len(each)):.2f}" if len(each) > 1 else ""
    return f"{statistics.mean(each):+.2f}{error}"


def _is_compared_with(point: Point, grid: Grid) -> bool:
    """Return whether a point is the one, or one of those, that the others are compared with."""
    return bool(grid.against) and grid.against.items() <= dict(point.place).items()


def table(
    grid: Grid, points: Sequence[Point], dense_flops: float, is_projected: bool = False
) -> str:
    """Return a grid as a Markdown table; what is not known stays empty.

    Args:
        grid: whose table it is.
        points: of it, one at least, as `points_of` returns them.
        dense_flops: of a dense training of usual length; 0 if there is none.
        is_projected: whether the last column is the time of a larger network.
    """
    lines = []
    for point in points:
        accuracy = [100 * value for value in point.values("accuracy")]
        spread = f" ± {statistics.stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
        lines.append(
            [
                *([str(value) for _, value in point.place] or [grid.name]),
                str(len(accuracy)),
                f"{statistics.mean(accuracy):.2f}{spread}",
                difference(point, points, grid.against),
                f"{point.mean('nll'):.3f}",
                f"{point.mean('ece'):.3f}",
                f"{point.mean('parameters') / 1e6:.3f} M",
                f"{point.mean('train_flops') / dense_flops:.2f}" if dense_flops else "",
                time_cell(point.time) if point.time else "",
                *([time_cell(point.larger) if point.larger else ""] if is_projected else []),
            ]
        )
    return markdown((*_axes(points), *HEAD, *(["projected"] if is_projected else [])), lines)


def _axes(points: Sequence[Point]) -> list[str]:
    return [axis for axis, _ in points[0].place] or ["run"]


def dense_flops_of(rows: Rows) -> float:
    """Return the FLOPs of a dense training of usual length, of the largest network; 0 without."""
    dense = (row for row in rows.values() if row["method"] == "dense")
    return max(
        (float(row["train_flops"]) / float(row["train_flops_ratio"]) for row in dense), default=0.0
    )


def besides(grid: Grid, points: Sequence[Point]) -> str:
    """Return what else is known of a grid's tickets as a Markdown table of means over seeds."""
    lines = [
        [
            *([str(value) for _, value in point.place] or [grid.name]),
            *(_mean(point, *column) for column in BESIDES.values()),
        ]
        for point in points
    ]
    return markdown((*_axes(points), *BESIDES), lines)


def _mean(point: Point, column: str, factor: float, digits: int) -> str:
    """Return a mean over those seeds that have a value; nothing if none has."""
    values = [factor * float(row[column]) for row in point.rows.values() if row[column]]
    return f"{statistics.mean(values):.{digits}f}" if values else ""


def places_of(study: Study, rows: Rows, times: Rows) -> dict[str, list[Labelled]]:
    """Return label, time and accuracy of every timed point, by the name of its grid."""
    places: dict[str, list[Labelled]] = {}
    for grid in study.grids:
        for point in points_of(grid, rows, times):
            if point.time is not None:
                place = float(point.time["training_ratio"]), 100 * point.mean("accuracy")
                places.setdefault(grid.name, []).append((point.name or grid.name, place))
    return places


def block(study: Study, rows: Rows, machines: Machines, figure: str | None) -> str:
    """Return everything that stands between a study's marks in a document.

    Args:
        study: whose tables they are.
        rows: of its runs, by key.
        machines: times, as `read_times` returns them.
        figure: file name of the figure, if there is one.
    """
    times, dense_flops = usual_times(machines), dense_flops_of(rows)
    parts = [f"### {study.title}", quoted(rows, times)]
    for grid in study.grids:
        versus = ", ".join(f"{axis} {value}" for axis, value in grid.against.items())
        parts += [f"**{grid.name}**" + (f", differences to {versus}" if versus else "")]
        points = points_of(grid, rows, times, study.projection)
        if all(_is_compared_with(point, grid) for point in points):
            parts += ["nothing to compare yet"]
            continue
        parts += [table(grid, points, dense_flops, study.projection is not None)]
        if study.evaluation:
            parts += [besides(grid, points)]
    if len(machines) > 1:
        parts += ["**times by machine**", machines_table(study, rows, machines)]
    if figure:
        parts += [f"![accuracy against time]({figure})"]
    return "\n\n".join(parts)


def quoted(rows: Rows, times: Rows) -> str:
    """Return what the figures are quoted with."""

    def distinct(table: Rows, *names: str) -> str:
        return "; ".join(sorted({", ".join(row[n] for n in names) for row in table.values()}))

    timed = f" Times (device, threads, rounds): {distinct(times, 'device', 'threads', 'n')}."
    return f"{len(rows)} runs; {distinct(rows, 'device', 'dtype', 'torch')}." + timed * bool(times)


def write(study: Study, rows: Rows, times_path: Path, document: Path) -> None:
    """Replace what stands between a study's marks in a Markdown file, and draw its figure.

    Raises:
        InputError: the file is not there, or has no marks of this study.
    """
    text = document.read_text(encoding="utf-8") if document.is_file() else ""
    put = partial(with_block, text, f"study {study.name}", where=f"'{document}'")
    put(body="")  # before anything is drawn
    machines = read_times(times_path)
    picture = document.parent / f"{document.stem}-{study.name}.png"
    drawn = draw(study.title, places_of(study, rows, usual_times(machines)), picture)
    body = block(study, rows, machines, picture.name if drawn else None)
    document.write_text(put(body=body), encoding="utf-8")
