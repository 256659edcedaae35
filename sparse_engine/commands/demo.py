"""Time training steps of three known networks, dense and sparse, here: sparse-engine demo.

It takes about half a minute on two CPU cores, needs no data, and draws demo.png. On a GPU steps are
in bf16 and captured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparse_engine.config.config import Config
from sparse_engine.config.flags import Parser, user_path
from sparse_engine.errors import RunFailure
from sparse_engine.installed import require
from sparse_engine.methods.resolve import resolve
from sparse_engine.tables import format_table

if TYPE_CHECKING:
    import torch
    from torch import nn

SPARSITIES = (0.2, 0.5, 0.8, 0.9)
BLOCK = (32, 32)
# A break-even below this sparsity says no more than that all is faster.
LOW = 0.1
# What all rounds of a network after the first two may take, and how many there are at most.
SECONDS, MOST = 5.0, 7


class Known(NamedTuple):
    """A network: its name, what builds it, pixels a side, images a step on a CPU and on a GPU."""

    name: str
    build: Callable[[], nn.Module]
    pixels: int
    on_cpu: int
    on_gpu: int


@dataclass(frozen=True)
class Timed:
    """Seconds of a network's step by round: dense, and by sparsity.

    runs_on: what its sparse layers run on at the highest sparsity.
    """

    name: str
    batch: int
    dense: Sequence[float]
    sparse: dict[float, Sequence[float]]
    runs_on: str

    def ratio(self, sparsity: float) -> float:
        """Return the median over the dense network's median."""
        return statistics.median(self.sparse[sparsity]) / statistics.median(self.dense)

    def break_even(self) -> float | None:
        """Return the sparsity from which on a sparse step is faster; None if none measured is.

        By the straight line through the two lowest sparsities: the time of kernels grows in
        proportion to the blocks.
        """
        (s0, first), (s1, second) = ((s, self.ratio(s)) for s in sorted(self.sparse)[:2])
        if self.ratio(max(self.sparse)) >= 1:
            return None
        slope = (second - first) / (s1 - s0)
        crossing = s0 + (1 - first) / slope if slope < 0 else 0.0
        return crossing if crossing > LOW else 0.0


def main(arguments: Sequence[str]) -> None:
    """Run the command line `arguments`."""
    parser = Parser(
        prog="sparse-engine demo",
        description=(__doc__ or "").partition(":")[0] + ".",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=user_path, default=Path("demo.png"), help="the picture [demo.png]"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    flags = parser.parse_strictly(arguments)
    require("sparse-engine demo", "torchvision")
    require("sparse-engine demo", "matplotlib")
    from sparse_engine.device import choose_device
    from sparse_engine.training.result import print_json
    from sparse_kernels.timing import CoreWait, disturbance

    config = resolve(
        Config(
            **{"method": "rigl", "dataset": "cifar10", "model": "wrn16-8", "block": "32x32"},
            **{"distribution": "uniform", "device": flags.device},
        )
    )
    device = choose_device(config)
    if device.type == "cuda":
        config = replace(config, dtype="bf16")
    print(f"training steps, dense and sparse, on {_place(device, config)}", flush=True)
    wait = CoreWait(device.type == "cuda")
    found = [timed(known, config, device) for known in known_networks()]
    core_wait = wait.share()
    print(f"\n{table(found)}\n\n{in_words(found)}")
    if disturbed := disturbance(core_wait):
        print(disturbed)
    try:
        draw(found, flags.out, _place(device, config))
    except (OSError, ValueError) as error:
        raise RunFailure(f"'{flags.out}' cannot be written: {error}") from None
    print(f"picture: {flags.out}")
    networks = {t.name: as_json(t) for t in found}
    print_json({"device": _place(device, config), "core_wait": core_wait, "networks": networks})


def known_networks() -> tuple[Known, ...]:
    """Return the networks that are timed, each with ten classes."""
    from torchvision.models import VisionTransformer, resnet18

    from sparse_engine.models.build import build_model

    image = {"channels": 3, "height": 32, "width": 32}
    return (
        Known("WRN-16-8", partial(build_model, "wrn16-8", classes=10, **image), 32, 2, 128),
        Known("ResNet-18", partial(resnet18, num_classes=10), 224, 2, 64),
        Known(
            "ViT-S/16",
            partial(VisionTransformer, 224, 16, 12, 6, 384, 1536, num_classes=10),
            *(224, 2, 64),
        ),
    )


def timed(known: Known, config: Config, device: torch.device) -> Timed:
    """Return the seconds of a network's steps, all in turn."""
    import torch

    from sparse_engine.data.catalog import DatasetInfo
    from sparse_engine.layers.base import SparseLayer
    from sparse_engine.sparsity.sparsify import sparsify
    from sparse_engine.training.network import network_of
    from sparse_engine.training.times.step_times import DENSE, random_step
    from sparse_kernels.timing import in_turn, rounds_within

    pixels, images = known.pixels, known.on_gpu if device.type == "cuda" else known.on_cpu
    info = DatasetInfo(known.name, 10, 3, pixels, pixels, images, images, (0.5,) * 3, (0.25,) * 3)
    config = replace(config, batch_size=images)
    models, steps = [], []
    for sparsity in (0.0, *SPARSITIES):
        torch.manual_seed(0)
        model, own = known.build(), replace(config, **({} if sparsity else DENSE))
        if sparsity:
            sparsify(model, sparsity, "uniform", BLOCK)
        model = model.to(device=device, memory_format=torch.channels_last)
        steps.append(random_step(network_of(model, own, device), own, info, images))
        models.append(model)
    on_gpu = device.type == "cuda"
    first = sum(seconds[0] for seconds in in_turn(steps, 1, on_gpu))
    dense, *sparse = in_turn(steps, rounds_within(SECONDS, first, MOST), on_gpu)
    ran_on = [m.ran_on for m in models[-1].modules() if isinstance(m, SparseLayer)]
    return Timed(
        known.name,
        images,
        dense,
        dict(zip(SPARSITIES, sparse)),
        max(ran_on, key=ran_on.count),
    )


def table(found: Sequence[Timed]) -> str:
    """Return a row for each sparsity, over one of the dense networks."""
    dense = [f"{1e3 * statistics.median(t.dense):.0f} ms" for t in found]
    rows = [["sparsity", *(f"{t.name}, batch {t.batch}" for t in found)], ["dense", *dense]]
    for sparsity in SPARSITIES:
        rows.append([f"{sparsity:.0%}", *(_cell(t, sparsity) for t in found)])
    return format_table(rows)


def _cell(found: Timed, sparsity: float) -> str:
    """Return a step's milliseconds, its ratio to dense, and the extremes of the rounds' ratios."""
    each = [ours / dense for ours, dense in zip(found.sparse[sparsity], found.dense)]
    milliseconds = 1e3 * statistics.median(found.sparse[sparsity])
    return f"{milliseconds:.0f} ms, {found.ratio(sparsity):.2f} ({min(each):.2f}-{max(each):.2f})"


def in_words(found: Sequence[Timed]) -> str:
    """Return what the rows say, and what to do where kernels do not run."""
    rounds = min(len(t.dense) for t in found)
    lines = [
        f"median of {rounds} or more steps in turn, ratio to the dense step (smallest to largest "
        "of the rounds); all layers equally sparse, blocks of 32x32"
    ]
    for t in found:
        even = t.break_even()
        told = "faster at all of these" if even == 0 else f"faster from about {even or 1:.0%} on"
        told = "not faster at any of these" if even is None else told
        lines.append(f"{t.name}: {told}, sparse layers run on {t.runs_on}")
    if any(t.runs_on == "masked" for t in found):
        lines.append(
            "masked multiplies all weights: on a CPU, install a C++ compiler (g++ or clang++), and "
            "run this again"
        )
    return "\n".join(lines)


def as_json(found: Timed) -> dict[str, object]:
    """Return what the last line has of a network: median seconds, and the rounds."""
    return {
        "batch": found.batch,
        "rounds": len(found.dense),
        "dense_seconds_per_step": statistics.median(found.dense),
        "seconds_per_step": {str(s): statistics.median(t) for s, t in found.sparse.items()},
        "break_even": found.break_even(),
        "runs_on": found.runs_on,
    }


def draw(found: Sequence[Timed], path: Path, place: str) -> None:
    """Draw the time of a step by sparsity, a panel for each network."""
    from sparse_engine.figures.style import save_figure

    def panels(axes: Sequence[Any]) -> None:
        for axis, timed in zip(axes, found):
            draw_one(axis, timed)
        axes[0].set_ylabel("ms a training step")
        axes[0].figure.suptitle(f"{place}, 32x32 blocks", fontsize=11)

    save_figure(path, panels, (4.2 * len(found), 4.0), (1, len(found)))


def draw_one(axes: Any, found: Timed) -> None:
    """Draw one network: its sparse steps, the dense step as a line, and where they meet."""
    from sparse_engine.figures.style import BLUE, GREY, SIZES, VERMILLION

    dense = 1e3 * statistics.median(found.dense)
    points = [(100 * s, 1e3 * statistics.median(t)) for s, t in found.sparse.items()]
    axes.axhline(dense, color=GREY, linestyle="--")
    place = {"textcoords": "offset points", "fontsize": SIZES["small"]}
    axes.annotate("dense", (1, dense), xytext=(0, 5), color=GREY, **place)
    axes.plot(*zip(*points), marker="o", color=BLUE)
    for sparsity, (x, y) in zip(found.sparse, points):
        words, turned = f"{found.ratio(sparsity):.2f}", {"rotation": 55, "ha": "right", "va": "top"}
        axes.annotate(words, (x, y), xytext=(4, -7), **turned, **place)
    even = found.break_even()
    if even is not None and even < min(found.sparse):
        # Where the line meets the dense network's; else the left edge.
        start = dense if even else min(dense, _at_zero(points))
        line = {"color": BLUE, "linestyle": ":"}
        axes.plot([100 * even, points[0][0]], [start, points[0][1]], **line)
        if even:
            axes.plot(100 * even, start, marker="D", color=VERMILLION)
        words = f"break-even, about {even:.0%}" if even else "faster at all of these"
        axes.annotate(words, (40, dense), xytext=(0, 5), color=VERMILLION, **place)
    axes.set(xlim=(0, 100), ylim=(0, 1.25 * max(dense, *(y for _, y in points))))
    axes.set_xlabel("weights that are absent, %")
    axes.set_title(f"{found.name}, batch {found.batch}")
    axes.grid(axis="y")


def _at_zero(points: Sequence[tuple[float, float]]) -> float:
    """Return where the straight line through the first two points meets the left edge."""
    (x0, y0), (x1, y1) = points[:2]
    return y0 - x0 * (y1 - y0) / (x1 - x0)


def _place(device: torch.device, config: Config) -> str:
    """Return what a figure is measured with: device, threads, data type, versions."""
    import torch

    from sparse_kernels.measurements import processor

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor()}, {torch.get_num_threads()} threads"
    return f"{name}, {config.dtype}, torch {torch.__version__}"
