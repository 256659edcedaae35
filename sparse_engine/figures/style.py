"""The one style of all figures: colours, sizes of letters, and how a figure is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Eight colours that readers tell apart however they see colours (Okabe & Ito 2008), yellow left
# out, which is too light for lines on white.
BLUE, VERMILLION, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
COLOURS = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", SKY, "#000000")
GREY, PALE = "#6E6E6E", "#EDEDED"  # what is compared with; what is absent
SHARES = "Blues"  # a map of colours from light (0) to dark (1)
MOST_INCHES = 150  # of a side: matplotlib draws 65536 pixels at most
SIZES = {"small": 10, "usual": 12}  # of letters, in points

_SETTINGS: dict[str, Any] = {
    "font.size": SIZES["usual"],
    "axes.titlesize": SIZES["usual"],
    "axes.titleweight": "bold",
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "grid.color": "#DDDDDD",
    "lines.linewidth": 2,
    "lines.markersize": 7,
    "hatch.linewidth": 0.8,
    "figure.constrained_layout.wspace": 0.05,
    "figure.constrained_layout.hspace": 0.05,
}


def save_figure(
    path: Path,
    draw: Callable[[Sequence[Any]], None],
    size: tuple[float, float],
    grid: tuple[int, int] = (1, 1),
    **options: Any,
) -> None:
    """Draw a figure in the common style, whatever style the user has set, and write it.

    Args:
        path: whose ending is the format.
        draw: is given the axes, row after row.
        size: width and height in inches, of which MOST_INCHES are drawn.
        grid: rows and columns of axes.
        options: of matplotlib's Figure.subplots.

    Raises:
        OSError, ValueError: the file cannot be written, or matplotlib knows no such format.
    """
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.rcsetup import cycler

    settings = _SETTINGS | {"axes.prop_cycle": cycler(color=COLOURS)}
    with style.context(["default", settings]):
        inches = [min(side, MOST_INCHES) for side in size]
        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.subplots(*grid, squeeze=False, **options)
        draw(list(axes.flat))
        figure.savefig(path, dpi=120)


def colours_of(count: int) -> list[Any]:
    """Return a colour for each of so many things; shades from dark to light where they are many."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps

    return [colormaps["cividis"](0.95 * number / (count - 1)) for number in range(count)]


def ink_on(share: float) -> str:
    """Return the colour of letters on a field of the map SHARES, of a share from 0 to 1."""
    return "white" if share > 0.55 else "black"


def legend_below(figure: Any, entries: Mapping[str, Any]) -> None:
    """Put one legend for the whole figure below its axes; no entries give none."""
    if entries:
        widest = 0.75 + 0.09 * max(map(len, entries))  # in inches
        columns = max(1, min(len(entries), 4, int(figure.get_figwidth() / widest)))
        columns = -(-len(entries) // -(-len(entries) // columns))  # lines of about equal length
        place = {"loc": "outside lower center", "ncols": columns}
        figure.legend(list(entries.values()), list(entries), **place)


def entries_of(axes: Sequence[Any]) -> dict[str, Any]:
    """Return what stands for what on several axes, each name once."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels()):
            found.setdefault(name, handle)
    return found


def blank(axes: Any) -> None:
    """Leave out what frames a picture or a table: lines of the frame, marks of ticks, grid."""
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0)
    axes.grid(False)
