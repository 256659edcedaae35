"""A figure of which blocks of a layer are active."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_engine.errors import InputError
from sparse_engine.figures.style import BLUE, GREY, PALE, SIZES, blank, save_figure
from sparse_engine.installed import require

if TYPE_CHECKING:
    from torch import nn

_LINED, _NUMBERED = 5, 12  # pixels of a field with lines around it, with a number beside it
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def draw_blocks(layer: nn.Module, target: str | Path | Any) -> None:
    """Draw which blocks of a layer are active: output blocks down, input blocks across.

    Args:
        layer: SparseConv2d or SparseLinear. Within a pair of blocks of a convolution are its taps,
            R rows of S, as they lie in the kernel.
        target: a file to write, whose ending is its format, or matplotlib axes to draw on.

    Raises:
        InputError: what is drawn is no sparse layer, matplotlib is not installed, or the file
            cannot be written.
    """
    if not hasattr(layer, "block_mask"):
        raise InputError(
            f"a {type(layer).__name__} has no blocks to draw; give a layer that is sparse"
        )
    sparse: Any = layer
    if not isinstance(target, str | Path):
        _draw_mask(target, sparse)
        return
    require("draw_blocks", "matplotlib")
    try:
        size = _size(sparse.layout.grid)
        save_figure(Path(target), lambda axes: _draw_mask(axes[0], sparse), size)
    except (OSError, ValueError) as error:
        raise InputError(f"'{target}' cannot be drawn: {error}") from None


def _size(grid: Sequence[int]) -> tuple[float, float]:
    """Return width and height in inches, of a fifth of an inch a tap, or less in wide layers."""
    outputs, inputs, height, width = grid
    side = min(0.2, 9 / (inputs * width), 9 / (outputs * height))
    return 1 + max(5.0, side * inputs * width), 1.6 + max(2.0, side * outputs * height)


def _draw_mask(axes: Any, layer: Any) -> None:
    mask = layer.layout.mask()  # [OB, CB, R, S]
    outputs, inputs, height, width = mask.shape
    image = mask.permute(0, 2, 1, 3).reshape(outputs * height, inputs * width)
    _draw_fields(axes, image.int().tolist(), inputs, outputs)
    blank(axes)
    _number(axes.xaxis, inputs)
    _number(axes.yaxis, outputs)
    box = axes.get_window_extent()
    pair = min(box.width / inputs, box.height / outputs)
    tap = min(box.width / (inputs * width), box.height / (outputs * height))
    if tap >= _LINED:
        _lines(axes, (inputs, outputs), (width, height), "white", 0.8)
    if pair >= _LINED and height * width > 1:
        _lines(axes, (inputs, outputs), (1, 1), GREY, 1.2)
    if tap >= _NUMBERED and height * width > 1:
        _number_taps(axes, height, width)
    rows, columns = layer.block
    active, total = layer.layout.active, layer.layout.total
    taps = f"\neach pair has {height} x {width} taps, as in the kernel" * (height * width > 1)
    axes.set(
        xlabel=f"input block, of {columns} channel{'s' * (columns > 1)}",
        ylabel=f"output block, of {rows} channel{'s' * (rows > 1)}",
    )
    title = f"density {layer.density:.4g}: {active} of {total} blocks active{taps}"
    axes.set_title(title, pad=6 + 1.4 * SIZES["small"] * bool(taps))


def _draw_fields(axes: Any, image: Sequence[Sequence[int]], inputs: int, outputs: int) -> None:
    from matplotlib.colors import ListedColormap

    options = {"cmap": ListedColormap([PALE, BLUE]), "vmin": 0, "vmax": 1, "aspect": "auto"}
    # The edges of the image are the first and last block's, so that places count blocks.
    axes.imshow(image, extent=(0, inputs, outputs, 0), **options)


def _number(axis: Any, count: int) -> None:
    """Number blocks from 0 at their middles, as many of them as are readable."""
    step = next(s for s in _STEPS if count <= 12 * s or s == _STEPS[-1])
    places = range(0, count, step)
    axis.set_ticks([place + 0.5 for place in places], [str(place) for place in places])


def _number_taps(axes: Any, height: int, width: int) -> None:
    """Number the first pair's taps: columns of the kernel above it, rows to the right of all."""
    letters = {"fontsize": SIZES["small"], "color": GREY, "annotation_clip": False}
    above, beside = axes.get_xaxis_transform(), axes.get_yaxis_transform()
    shift = {"textcoords": "offset points", **letters}
    for column in range(width):
        place = ((column + 0.5) / width, 1)
        axes.annotate(str(column), place, (0, 3), xycoords=above, ha="center", **shift)
    axes.annotate("tap", (0, 1), (-2, 3), xycoords=above, ha="right", **shift)
    for row in range(height):
        place = (1, (row + 0.5) / height)
        axes.annotate(str(row), place, (4, 0), xycoords=beside, va="center", **shift)


def _lines(
    axes: Any, counts: Sequence[int], parts: Sequence[int], colour: str, width: float
) -> None:
    """Draw lines around the parts of every pair of blocks."""
    (across, down), (columns, rows) = counts, parts
    inner = {"colors": colour, "linewidth": width}
    axes.vlines([i / columns for i in range(across * columns + 1)], 0, down, **inner)
    axes.hlines([i / rows for i in range(down * rows + 1)], 0, across, **inner)
