"""The gemm path on a CPU beside the masked path and the dense layer: python -m bench.dev.cpu_table.

A row is a layer, a block and a density: forward and both gradients, in channels_last, as ratios of
times taken in turn, and the ratio that backend.py expects, by which `auto` chooses. Its constants
are fitted to this table. One thread is timed by its CPU time, which other processes disturb
little; with --threads of more, by the clock, on a machine that should have nothing else to do.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_kernels import BlockLayout, block_conv2d, block_linear
from sparse_kernels.dispatch import backend
from sparse_kernels.dispatch.cost_model import gemm_ratio
from sparse_kernels.layout import clamp_block

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
BLOCKS = (16, 32, 64)


class Layer(NamedTuple):
    """A network's layer: images of size 0 are a linear layer's vectors."""

    network: str
    images: int
    size: int
    channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1

    @property
    def positions(self) -> int:
        """Vectors of output channels."""
        return self.images * (-(-self.size // self.stride)) ** 2 if self.size else self.images


LAYERS = [
    Layer("WRN-16-2", 128, 32, 16, 16),
    Layer("WRN-16-2", 128, 32, 32, 32),
    Layer("WRN-16-2", 128, 16, 64, 64),
    Layer("WRN-16-2", 128, 16, 64, 128, stride=2),
    Layer("WRN-16-2", 128, 8, 128, 128),
    Layer("WRN-28-10", 8, 32, 160, 160),
    Layer("WRN-28-10", 8, 16, 320, 320),
    Layer("WRN-28-10", 8, 8, 640, 640),
    Layer("WRN-28-10", 32, 8, 640, 640),
    Layer("ResNet-18", 32, 8, 256, 256),
    Layer("ResNet-18", 32, 4, 512, 512),
    Layer("ResNet-50", 8, 28, 512, 128, kernel=1),
    Layer("ResNet-50", 8, 14, 256, 1024, kernel=1),
    Layer("ResNet-50", 8, 28, 512, 1024, kernel=1, stride=2),
    Layer("MLP", 128, 0, 1024, 1024, kernel=1),
    Layer("transformer", 2048, 0, 512, 2048, kernel=1),
]


def passes(layer: Layer, operator: Callable, x: Tensor, *weights: Tensor) -> Callable[[], None]:
    """Return forward and both gradients of a layer as a function without arguments."""
    x, value = (t.detach().requires_grad_() for t in (x, weights[0]))
    if layer.size:
        geometry = {"stride": layer.stride, "padding": layer.kernel // 2}
        forward = lambda: operator(x, value, *weights[1:], **geometry)  # noqa: E731
    else:
        forward = lambda: operator(x, value, *weights[1:])  # noqa: E731
    grad = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), (x, value), grad)


def contenders(layer: Layer, block: int, density: float, dtype: torch.dtype):
    """Return the dense, masked and gemm passes of a layer, and what backend.py expects."""
    taps = (layer.kernel, layer.kernel) if layer.size else ()
    shape = (layer.out_channels, layer.channels, *taps)
    whole = BlockLayout(shape, (block, block), torch.arange(1))
    ids = torch.randperm(whole.total)[: max(1, round(density * whole.total))]
    layout = BlockLayout(shape, whole.block, ids)
    values = torch.randn(layout.slots, *reversed(layout.block), dtype=dtype)
    weight, x = torch.randn(shape, dtype=dtype), torch.randn(layer.images, layer.channels)
    if layer.size:
        x = torch.randn(layer.images, layer.channels, layer.size, layer.size)
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    dense, sparse = (F.conv2d, block_conv2d) if layer.size else (F.linear, block_linear)
    found = {"dense": passes(layer, dense, x.to(dtype), weight)}
    for name in ("masked", "gemm"):
        os.environ[backend.VARIABLE] = name
        found[name] = passes(layer, sparse, x.to(dtype), values, layout)
    expected = gemm_ratio(tuple(layout.sizes()), layout.density, layer.positions)
    return found, layout, expected


def seconds(functions: dict[str, Callable], rounds: int, clock: Callable) -> dict[str, list[float]]:
    """Return the seconds that each function took, called in turn, in every round but a first."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            os.environ[backend.VARIABLE] = name if name in backend.BACKENDS else "auto"
            began = clock()
            function()
            times[name].append(clock() - began)
    return {name: taken[1:] for name, taken in times.items()}


def ratio(times: dict[str, list[float]], over: str, under: str) -> str:
    """Return the median of one over the median of another, and the quartiles over the rounds."""
    each = [a / b for a, b in zip(times[over], times[under])]
    low, _, high = statistics.quantiles(each, n=4)
    middle = statistics.median(times[over]) / statistics.median(times[under])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--networks", nargs="*", default=[layer.network for layer in LAYERS])
    parser.add_argument("--blocks", nargs="*", type=int, default=BLOCKS)
    parser.add_argument("--densities", nargs="*", type=float, default=DENSITIES)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    print(f"{platform.machine()}, torch {torch.__version__}, {options}")
    print("| layer | block | density | dense ms | masked / dense | gemm / dense ", end="")
    print("| gemm / masked | the same as expected |")
    print("|---" * 8 + "|")
    for layer in LAYERS:
        sizes = {clamp_block((b, b), layer.out_channels, layer.channels) for b in options.blocks}
        for block in sorted({b for _, b in sizes}) if layer.network in options.networks else ():
            for density in options.densities:
                found, layout, expected = contenders(
                    layer, block, density, getattr(torch, options.dtype)
                )
                times = seconds(found, options.rounds, clock)
                name = " ".join(f"{v}" for v in layer)
                print(
                    f"| {name} | {layout.block} | {layout.density:.2f} "
                    f"| {1e3 * statistics.median(times['dense']):.1f} "
                    f"| {ratio(times, 'masked', 'dense')} | {ratio(times, 'gemm', 'dense')} "
                    f"| {ratio(times, 'gemm', 'masked')} | {expected:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
