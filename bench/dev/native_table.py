"""The native kernels on a CPU beside the dense layer: python -m bench.dev.native_table.

A row is a layer, a block and a density: the ratio of the times of forward and both gradients to
those of the dense layer (oneDNN for images, MKL for matrices), taken in turn in one process, and
how many GFLOP/s either side reaches, active blocks alone counted, by pass. Medians. One thread is
timed by its CPU time, which other processes disturb little; more by the clock, on a machine with
nothing else to do.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from bench.dev.harness import print_table
from sparse_kernels.cpu import channel_vectors
from sparse_kernels.layout import BlockLayout
from sparse_kernels.timing import once

# Images, channels in and out, pixels a side (0: a linear layer's rows), kernel, stride.
LAYERS = (
    (32, 256, 256, 16, 3, 1),
    (8, 640, 640, 8, 3, 1),
    (8, 160, 160, 32, 3, 1),
    (8, 64, 64, 16, 3, 1),
    (8, 256, 256, 4, 3, 1),
    (8, 512, 512, 2, 3, 1),
    (8, 128, 256, 16, 3, 2),
    (8, 512, 512, 14, 1, 1),
    (2048, 512, 2048, 0, 1, 1),
    (128, 1024, 1024, 0, 1, 1),
)
COLUMNS = (
    "layer", "block", "density", "dense ms", "native / dense", "GFLOP/s dense", "y", "dx", "dw",
)  # fmt: skip
FLAGS = {
    "threads": 1, "rounds": 9, "blocks": [16, 32, 64], "densities": [0.1, 0.2], "layers": "",
}  # fmt: skip

Run = Callable[[], object]


def random_layout(shape: tuple[int, ...], block: int, density: float) -> BlockLayout:
    """Return a layout of random blocks in random slots, as after updates of the topology."""
    whole = BlockLayout(shape, (block, block), torch.arange(1))
    ids = torch.randperm(whole.total)[: max(1, round(density * whole.total))]
    return BlockLayout(shape, (block, block), ids)


def linear_passes(layer: tuple[int, ...], layout: BlockLayout) -> tuple[list[Run], list[Run]]:
    """Return the dense passes and the native ones of a linear layer."""
    rows, inputs, outputs = layer[:3]
    lists = layout.tensors(), layout.sizes()
    x, grad = torch.randn(rows, inputs), torch.randn(rows, outputs)
    weight, values = torch.randn(outputs, inputs), torch.randn(layout.slots, *layout.block[::-1])
    return [lambda: F.linear(x, weight), lambda: (grad @ weight, grad.T @ x)], [
        lambda: channel_vectors.linear(x, values, None, *lists),
        lambda: channel_vectors.linear_input_grad(grad, values, *lists),
        lambda: channel_vectors.linear_weight_grad(x, grad, *lists),
    ]


def convolution_passes(layer: tuple[int, ...], layout: BlockLayout) -> tuple[list[Run], list[Run]]:
    """Return the dense passes and the native ones of a convolution, in channels_last."""
    images, inputs, outputs, size, kernel, stride = layer
    geometry = ((stride, stride), (kernel // 2, kernel // 2), (1, 1))
    lists = layout.tensors(), layout.sizes(), geometry
    results = (size - 1) // stride + 1
    x, grad, weight = (
        torch.randn(shape).contiguous(memory_format=torch.channels_last)
        for shape in (
            (images, inputs, size, size),
            (images, outputs, results, results),
            (outputs, inputs, kernel, kernel),
        )
    )
    values = torch.randn(layout.slots, *layout.block[::-1])
    backward = torch.ops.aten.convolution_backward
    gradients = (*geometry, False, [0, 0], 1, [True, True, False])
    return [
        lambda: F.conv2d(x, weight, None, *geometry),
        lambda: backward(grad, x, weight, None, *gradients),
    ], [
        lambda: channel_vectors.conv2d(x, values, None, torch.empty_like(grad), *lists),
        lambda: channel_vectors.conv2d_input_grad(grad, values, torch.empty_like(x), *lists),
        lambda: channel_vectors.conv2d_weight_grad(x, grad, *lists),
    ]


def medians(runs: list[Run], rounds: int) -> list[float]:
    """Return the median seconds of each run; they are made in turn."""
    for run in runs:
        run()
    times = [[once(run, on_gpu=False) for run in runs] for _ in range(rounds)]
    return torch.tensor(times, dtype=torch.float64).median(0).values.tolist()


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each layer, block and density."""
    torch.manual_seed(0)
    for layer in LAYERS:
        images, inputs, outputs, size, kernel, stride = layer
        name = " ".join(map(str, layer))
        if not name.startswith(options.layers):
            continue
        shape = (outputs, inputs, kernel, kernel) if size else (outputs, inputs)
        passes = convolution_passes if size else linear_passes
        pixels = images * ((size - 1) // stride + 1) ** 2 if size else images
        gflop = 2e-9 * pixels * inputs * outputs * kernel**2
        for block, density in itertools.product(options.blocks, options.densities):
            layout = random_layout(shape, block, density)
            dense, native = passes(layer, layout)
            times = medians(dense + native, options.rounds)
            whole = sum(times[:2])
            yield [
                name,
                str(block),
                f"{layout.density:.2f}",
                f"{1e3 * whole:.2f}",
                f"{sum(times[2:]) / whole:.3f}",
                f"{3 * gflop / whole:.0f}",
                *(f"{layout.density * gflop / seconds:.0f}" for seconds in times[2:]),
            ]


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
