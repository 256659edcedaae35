"""Figures of an evaluation and of a layer's blocks, with matplotlib; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_engine.errors import InputError
from sparse_engine.installed import require
from sparse_engine.runs.epoch_rows import whole_rows

if TYPE_CHECKING:
    from torch import nn

    from sparse_engine.layers.base import SparseLayer


def draw_blocks(layer: nn.Module, target: str | Path | Any) -> None:
    """Draw which blocks of a layer are active: output blocks down, input blocks across.

    Args:
        layer: SparseConv2d or SparseLinear. Within a pair of blocks of a convolution are its taps,
            R rows of S.
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
        _save(lambda axes: _draw_mask(axes[0], sparse), 1, Path(target))
    except (OSError, ValueError) as error:
        raise InputError(f"'{target}' cannot be drawn: {error}") from None


def _draw_mask(axes: Any, layer: SparseLayer) -> None:
    mask = layer.layout.mask()  # [OB, CB, R, S]
    outputs, inputs, height, width = mask.shape
    image = mask.permute(0, 2, 1, 3).reshape(outputs * height, inputs * width)
    # The edges of the image are the first and last block's, so that ticks count blocks.
    extent = (0, inputs, outputs, 0)
    axes.imshow(image.int().tolist(), cmap="Blues", vmin=0, vmax=1, extent=extent, aspect="auto")
    rows, columns = layer.block
    axes.set(
        xlabel=f"input block ({columns} channels)",
        ylabel=f"output block ({rows} channels)",
        title=f"density {layer.density:.4g}",
    )


def draw_all(result: Mapping[str, Any], target: Path) -> None:
    """Draw every figure that there is data for into `target`, which is made.

    `result` is that of evaluate.evaluate, with `densities`; the curves are read from its runs.
    """
    figures: dict[str, Callable[[Any], None]] = {
        "reliability": lambda axes: draw_reliability(axes[0], result),
        "density": lambda axes: draw_densities(axes[0], result["densities"]),
    }
    if "growing" in result:
        figures["members"] = lambda axes: draw_growth(axes, result["growing"])
        figures["disagreement"] = lambda axes: draw_disagreement(axes[0], result)
    if curves := training_curves(result["runs"]):
        figures["training"] = lambda axes: draw_training(axes, curves)
    target.mkdir(parents=True, exist_ok=True)
    for name, draw in figures.items():
        _save(draw, 2 if name in ("members", "training") else 1, target / f"{name}.png")


def draw_reliability(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw the ensemble's accuracy in bins of confidence (Guo et al. 2017, figure 1)."""
    bins = result["calibration"]
    filled = [i for i, count in enumerate(bins["counts"]) if count]
    places = [bins["confidence"][i] for i in filled]
    axes.bar(places, [bins["accuracy"][i] for i in filled], width=0.5 / len(bins["counts"]))
    axes.plot([0, 1], [0, 1], linestyle="--", color="gray")
    axes.set(xlabel="confidence", ylabel="accuracy", title=f"ECE {result['ece']:.4f}")


def draw_growth(axes: Sequence[Any], growing: Sequence[Mapping[str, float]]) -> None:
    """Draw accuracy and NLL against the number of members, taken in order."""
    counts = list(range(1, len(growing) + 1))
    for axis, name, title in zip(axes, ("accuracy", "nll"), ("accuracy", "NLL")):
        axis.plot(counts, [metrics[name] for metrics in growing], marker="o")
        axis.set(xlabel="members", ylabel=title, xticks=counts)


def draw_disagreement(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw the share of images that each pair of members puts in different classes."""
    matrix = result["disagreement_matrix"]
    places = list(range(len(matrix)))
    image = axes.imshow(matrix)
    axes.figure.colorbar(image, ax=axes)
    names = [str(place + 1) for place in places]
    axes.set(xticks=places, yticks=places, xticklabels=names, yticklabels=names)
    axes.set(xlabel="member", ylabel="member", title=f"disagreement {result['disagreement']:.4f}")


def draw_densities(axes: Any, densities: Sequence[Mapping[str, float]]) -> None:
    """Draw each member's density layer by layer, in the order of the model."""
    for number, by_layer in enumerate(densities, 1):
        axes.plot(list(by_layer.values()), marker=".", label=f"member {number}")
    axes.set(xlabel="layer", ylabel="density", ylim=(0, 1.05))
    axes.legend()


def draw_training(axes: Sequence[Any], curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Draw each run's loss and held-out accuracy against its steps."""
    for axis, name, title in zip(
        axes, ("train_loss", "accuracy"), ("training loss", "held-out accuracy")
    ):
        for run, rows in curves.items():
            axis.plot([row["step"] for row in rows], [row[name] for row in rows], label=run)
        axis.set(xlabel="step", ylabel=title)
        axis.legend()


def training_curves(runs: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """Return step, train_loss and accuracy of every epoch, for each run that has metrics.csv."""
    curves, columns = {}, ("step", "train_loss", "accuracy")
    for run in runs:
        path = Path(run) / "metrics.csv"
        if not path.is_file():
            continue
        try:
            curves[run] = [{c: float(row[c]) for c in columns} for row in whole_rows(path)]
        except ValueError:
            raise InputError(f"'{path}' is damaged; move it away to draw the rest") from None
    return curves


def _save(draw: Callable[[Any], None], panels: int, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * panels, 4), layout="constrained")
    draw(figure.subplots(1, panels, squeeze=False)[0])
    figure.savefig(path, dpi=150)
