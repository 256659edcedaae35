"""The figure of a study: accuracy against time, and the Pareto front."""

import importlib.util
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_engine.figures.style import COLOURS, GREY, SIZES, entries_of, legend_below, save_figure

Place = tuple[float, float]
Labelled = tuple[str, Place]
Box = tuple[float, float, float, float]
_SIZE = (9.0, 7.2)
# What tells grids apart beside colours, of which there are fewer.
_MARKERS = "osD^vPX"
# Where a label may stand, in points from its point, and whether it ends there.
_OFFSETS = (
    (8, 0, False),
    (-8, 0, True),
    (8, 9, False),
    (8, -9, False),
    (-8, 9, True),
    (-8, -9, True),
)


def pareto(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (time, accuracy) that no other is both as fast and as good as, by time."""
    front: list[tuple[float, float]] = []
    for place in sorted(places, key=lambda place: (place[0], -place[1])):
        if not front or place[1] > front[-1][1]:
            front.append(place)
    return front


def draw(title: str, places: Mapping[str, Sequence[Labelled]], target: Path) -> bool:
    """Draw accuracy against time, of whole trainings; return whether there is a figure.

    Without matplotlib there is none, and it says so.
    """
    if not places:
        return False
    if importlib.util.find_spec("matplotlib") is None:
        print("no figure: it needs matplotlib, pip install -e '.[plots]'")
        return False
    save_figure(target, lambda axes: draw_places(axes[0], title, places), _SIZE)
    return True


def draw_places(axes: Any, title: str, places: Mapping[str, Sequence[Labelled]]) -> None:
    """Draw time and accuracy of what is labelled, by the name of its grid, and the front.

    What several grids share is drawn once, as the first of them has it. Labels are left out where
    there is no room for them; the tables have all.
    """
    front = pareto([place for labelled in places.values() for _, place in labelled])
    axes.plot(*zip(*front), color=GREY, linewidth=1.2, label="none is both faster and better")
    names: dict[Place, str] = {}
    colours: dict[Place, str] = {}
    looks = itertools.product(_MARKERS, COLOURS)
    for (name, labelled), (marker, colour) in zip(places.items(), looks):
        own = {place: label or name for label, place in labelled if place not in names}
        if own:
            axes.scatter(*zip(*own), s=50, color=colour, marker=marker, label=name, zorder=2)
        names |= own
        colours |= dict.fromkeys(own, colour)
    axes.set(xlabel="time of the training / dense", ylabel="accuracy %", title=title)
    axes.margins(x=0.1, y=0.06)
    axes.grid(color="#EEEEEE")
    legend_below(axes.figure, entries_of([axes]))
    axes.figure.draw_without_rendering()  # so that places in points are known
    first = sorted(names, key=lambda place: (place not in front, place))
    for place, (across, up, ends) in _free(axes, [(names[place], place) for place in first], front):
        look = {"ha": "right" if ends else "left", "va": "center", "fontsize": SIZES["small"]}
        look |= {"color": colours[place], "textcoords": "offset points"}
        axes.annotate(names[place], place, (across, up), **look)


def _free(
    axes: Any, labelled: Sequence[Labelled], line: Sequence[Place]
) -> Iterator[tuple[Place, tuple[int, int, bool]]]:
    """Yield where each label may stand: not on a point, the line, or one that came before."""
    to_points = 72 / axes.figure.dpi
    frame: Box = tuple(to_points * edge for edge in axes.bbox.extents)
    dots = {place: to_points * axes.transData.transform(place) for _, place in labelled}
    corners = [dots[place] for place in line]
    between = [
        tuple(a + (b - a) * part / 50 for a, b in zip(*ends))
        for ends in itertools.pairwise(corners)
        for part in range(1, 50)
    ]
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots.values()]
    taken += [(x, y, x, y) for x, y in between]
    for label, place in labelled:
        width, height = 0.62 * SIZES["small"] * len(label), 1.1 * SIZES["small"]
        x, y = dots[place]
        for across, up, ends in _OFFSETS:
            left, bottom = x + across - width * ends, y + up - height / 2
            box = left, bottom, left + width, bottom + height
            if _lies_in(box, frame) and not any(_meet(box, other) for other in taken):
                taken.append(box)
                yield place, (across, up, ends)
                break


def _meet(one: Box, other: Box) -> bool:
    return all(one[i] < other[i + 2] and other[i] < one[i + 2] for i in (0, 1))


def _lies_in(box: Box, frame: Box) -> bool:
    return all(frame[i] <= box[i] and box[i + 2] <= frame[i + 2] for i in (0, 1))
