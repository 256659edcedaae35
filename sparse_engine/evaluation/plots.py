"""Figures of an evaluation, with matplotlib; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparse_engine.evaluation.tables import mean_metrics
from sparse_engine.evaluation.training_plots import draw_kept, draw_training, told_runs
from sparse_engine.figures.style import (
    BLUE,
    GREY,
    SHARES,
    SIZES,
    SKY,
    VERMILLION,
    blank,
    colours_of,
    entries_of,
    ink_on,
    legend_below,
    save_figure,
)

_MOST_NUMBERED = 20  # members whose disagreement has numbers


@dataclass(frozen=True)
class Figure:
    """How a figure is drawn, its size in inches, and its rows and columns of axes."""

    draw: Callable[[Sequence[Any]], None]
    size: tuple[float, float]
    grid: tuple[int, int] = (1, 1)
    options: Mapping[str, Any] = field(default_factory=dict)


def draw_all(result: Mapping[str, Any], target: Path) -> None:
    """Draw every figure that there is data for into `target`, which is made.

    `result` is that of evaluate.evaluate for figures; curves are read from the folders of its runs.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name, figure in figures_of(result).items():
        path = target / f"{name}.png"
        save_figure(path, figure.draw, figure.size, figure.grid, **figure.options)


def figures_of(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures of an evaluation by name, those that there is data for."""
    count, names = len(result["members"]), member_names(result)
    layers = len({layer for by_layer in result["densities"] for layer in by_layer})
    figures = {
        "reliability": Figure(
            lambda axes: draw_reliability(axes, result),
            (6.4, 6.4),
            (2, 1),
            {"sharex": True, "height_ratios": (3, 1)},
        ),
        "density": Figure(
            lambda axes: draw_densities(axes[0], dict(zip(names, result["densities"]))),
            (8, 1.6 + layers * max(0.28, 0.1 * count)),
        ),
    }
    if len(result["subsets"]) > 1:
        dense = [m for m, is_dense in zip(result["members"], result["dense_members"]) if is_dense]
        beside = mean_metrics(dense) if 0 < len(dense) < count else None
        figures["members"] = Figure(
            lambda axes: draw_growth(axes, result["subsets"], beside), (9, 4.2), (1, 2)
        )
    if count > 1:
        side = min(0.8, 14 / count) * count
        size = (max(5.0, 0.8 + 0.1 * max(map(len, names)) + side), 1.4 + side)
        figures["disagreement"] = Figure(
            lambda axes: draw_disagreement(axes[0], result, names), size
        )
    if runs := told_runs(result["runs"]):
        size = (10, 0.9 + 2.8 * len(runs))
        figures["training"] = Figure(lambda axes: draw_training(axes, runs), size, (len(runs), 2))
    if moved := [run for run in runs if run.blocks]:
        heights = [1 + 0.26 * len({row.layer for row in run.blocks}) for run in moved]
        figures["blocks"] = Figure(
            lambda axes: draw_kept(axes, moved),
            (11, 0.6 + sum(heights)),
            (len(moved), 2),
            {"sharey": "row", "height_ratios": heights},
        )
    return figures


def member_names(result: Mapping[str, Any]) -> list[str]:
    """Return what members are called, as in the tables; of several runs with the run's name."""
    runs = result["member_runs"]
    several = len(set(runs)) > 1
    return [f"member {number}{f', {run}' * several}" for number, run in enumerate(runs, 1)]


def draw_reliability(axes: Sequence[Any], result: Mapping[str, Any]) -> None:
    """Draw the ensemble's accuracy in bins of confidence, and the images in each, on two axes.

    The gap to the confidence is hatched. Source: Guo et al. 2017, figure 1.
    """
    upper, lower = axes
    bins, width = result["calibration"], 1 / len(result["calibration"]["counts"])
    filled = [i for i, count in enumerate(bins["counts"]) if count]
    places = [(i + 0.5) * width for i in filled]
    right = [bins["accuracy"][i] for i in filled]
    gaps = [bins["confidence"][i] - bins["accuracy"][i] for i in filled]
    upper.bar(places, right, 0.94 * width, color=SKY, label="accuracy")
    look = {"color": "none", "edgecolor": VERMILLION, "hatch": "///", "linewidth": 1.2}
    upper.bar(places, gaps, 0.94 * width, bottom=right, label="gap to confidence", **look)
    upper.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    upper.set_title(f"ECE {result['ece']:.4f}, {int(sum(bins['counts']))} images")
    upper.legend(loc="upper left")
    counts = [int(bins["counts"][i]) for i in filled]
    lower.bar(places, counts, 0.94 * width, color=SKY)
    letters = {"ha": "center", "va": "bottom", "fontsize": SIZES["small"]}
    for place, count in zip(places, counts):
        lower.text(place, count, str(count), **letters)
    lower.set(xlabel="confidence", ylabel="images", ylim=(0, 1.3 * max(counts)))


def draw_growth(
    axes: Sequence[Any],
    sizes: Sequence[Mapping[str, Any]],
    dense: Mapping[str, float] | None = None,
) -> None:
    """Draw accuracy and NLL against the number of members, on two axes.

    Args:
        axes: of accuracy, and of NLL.
        sizes: of predict.subset_metrics.
        dense: accuracy and NLL of a dense network, or the means of several.
    """
    counts = [row["members"] for row in sizes]
    for axis, name, title in zip(axes, ("accuracy", "nll"), ("accuracy", "NLL")):
        low, mean, high = ([row[name][part] for row in sizes] for part in ("low", "mean", "high"))
        axis.plot(counts, mean, marker="o", color=BLUE, label="mean over subsets of members")
        band = {"color": BLUE, "alpha": 0.2, "linewidth": 0, "label": "worst to best subset"}
        axis.fill_between(counts, low, high, **band)
        if dense:
            axis.axhline(dense[name], linestyle="--", color=GREY, label="one dense network")
        axis.set(xlabel="members", ylabel=title)
        axis.locator_params(axis="x", integer=True)
        axis.grid(axis="y")
    legend_below(axes[0].figure, entries_of(axes))


def draw_disagreement(axes: Any, result: Mapping[str, Any], names: Sequence[str]) -> None:
    """Draw the share of images that each pair of members puts in different classes."""
    matrix, places = result["disagreement_matrix"], range(len(names))
    others = [
        [v if i != j else float("nan") for j, v in enumerate(r)] for i, r in enumerate(matrix)
    ]
    most = max(max(row) for row in matrix) or 1.0
    axes.imshow(others, cmap=SHARES, vmin=0, vmax=most)
    if len(names) <= _MOST_NUMBERED:
        for i, j in ((i, j) for i in places for j in places if i != j):
            ink = {"color": ink_on(matrix[i][j] / most), "ha": "center", "va": "center"}
            axes.text(j, i, f"{matrix[i][j]:.3f}", fontsize=SIZES["small"], **ink)
    axes.set_xticks(places, [str(place + 1) for place in places])
    axes.set_yticks(places, names)
    axes.set_xlabel("member")
    blank(axes)
    mean = result["disagreement"]
    axes.set_title(f"share of images in different classes\nmean {mean:.4f}")


def draw_densities(axes: Any, densities: Mapping[str, Mapping[str, float]]) -> None:
    """Draw each member's density as a group of bars, one for each layer, by name.

    densities: by layer, in the order of the model, by the name of a member.
    """
    layers = list(dict.fromkeys(layer for by_layer in densities.values() for layer in by_layer))
    height = 0.8 / len(densities)
    for number, (colour, (name, by_layer)) in enumerate(
        zip(colours_of(len(densities)), densities.items())
    ):
        places = [layers.index(layer) - 0.4 + (number + 0.5) * height for layer in by_layer]
        axes.barh(places, list(by_layer.values()), 0.92 * height, color=colour, label=name)
    axes.set_yticks(range(len(layers)), layers)
    axes.set(xlabel="density", xlim=(0, 1), ylim=(len(layers) - 0.4, -0.6))
    axes.grid(axis="x")
    legend_below(axes.figure, entries_of([axes]) if len(densities) > 1 else {})
