"""Native kernels over pixels beside the dense layer: ratios of the CPU time of a step.

    PYTHONPATH=kernels:. python -m bench.dev.pixel_table [conv256] [conv640] [linear] [wrn]

Forward and both gradients, one thread, fp32, contenders in turn, medians; the dense layer is
PyTorch's, eager and in channels_last. The parts are shares of the sparse layer's own time.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_kernels.cpu import pixel_vectors
from sparse_kernels.layout import BlockLayout

ROUNDS = 9
BLOCKS = ((1, 1), (2, 2), (4, 4), (8, 8))


class Case(NamedTuple):
    """A layer: a linear one has no taps, rows for images."""

    images: int
    inputs: int
    outputs: int
    pixels: int
    taps: int
    stride: int = 1


CASES = {
    "conv256": [Case(32, 256, 256, 16, 3)],
    "conv640": [Case(8, 640, 640, 8, 3)],
    "linear": [Case(2048, 512, 2048, 1, 1)],
    "wrn": [
        Case(32, 64, 64, 32, 3),
        Case(32, 64, 128, 32, 3, 2),
        Case(32, 64, 128, 32, 1, 2),
        Case(32, 128, 128, 16, 3),
        Case(32, 128, 256, 16, 3, 2),
        Case(32, 256, 256, 8, 3),
    ],
}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or CASES:
        for case in CASES[name]:
            for block in BLOCKS:
                for density in (0.1, 0.2):
                    print(row(case, block, density), flush=True)


def row(case: Case, block: tuple[int, int], density: float) -> str:
    """Return the ratio, and the milliseconds of dense and of the three passes."""
    torch.manual_seed(0)
    passes, dense = contenders(case, block, density)
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, run in {"dense": dense, **passes}.items():
            start = time.process_time()
            run()
            times.setdefault(name, []).append(time.process_time() - start)
    median = {name: statistics.median(t) * 1000 for name, t in times.items()}
    ours = sum(median[name] for name in passes)
    parts = " ".join(f"{name} {median[name]:.2f}" for name in passes)
    what = f"{case} {block[0]}x{block[1]} @ {density}"
    return f"{what}: {ours / median['dense']:.3f} of {median['dense']:.1f} ms ({parts})"


def contenders(case: Case, block: tuple[int, int], density: float):
    """Return the sparse passes by name, and the dense step."""
    shape = (case.outputs, case.inputs, case.taps, case.taps)
    geometry = ((case.stride,) * 2, (case.taps // 2,) * 2, (1, 1))
    grid = tuple(-(-shape[i] // block[i]) for i in (0, 1)) + shape[2:]
    layout = BlockLayout.from_mask(torch.rand(grid) < density, shape, block)
    index, sizes = layout.index.tensors(), (*shape, *block)
    values = torch.randn(layout.slots, block[1], block[0])
    weight = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    if case.pixels == 1:
        x = torch.randn(case.images, case.inputs)
        grad = torch.randn(case.images, case.outputs)
        matrix = weight.detach().flatten(1).clone().requires_grad_()
        passes: dict[str, Callable[[], Tensor]] = {
            "forward": lambda: pixel_vectors.linear(x, values, None, index, sizes),
            "dx": lambda: pixel_vectors.linear_input_grad(grad, values, index, sizes),
            "dw": lambda: pixel_vectors.linear_weight_grad(x, grad, index, sizes),
        }
        return passes, _step(lambda x: torch.nn.functional.linear(x, matrix), x, matrix, grad)
    x = torch.randn(case.images, case.inputs, case.pixels, case.pixels)
    x = x.contiguous(memory_format=torch.channels_last)
    stride, padding, dilation = geometry
    with torch.no_grad():
        y = torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation)
    grad = torch.randn_like(y)

    def empty(like: Tensor) -> Tensor:
        return torch.empty_like(like)

    passes = {
        "forward": lambda: pixel_vectors.conv2d(x, values, None, empty(y), index, sizes, geometry),
        "dx": lambda: pixel_vectors.conv2d_input_grad(
            grad, values, empty(x), index, sizes, geometry
        ),
        "dw": lambda: pixel_vectors.conv2d_weight_grad(x, grad, index, sizes, geometry),
    }

    def dense(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation)

    return passes, _step(dense, x, weight, grad)


def _step(run: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor, grad: Tensor):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()

    def step() -> None:
        torch.autograd.grad(run(x), (x, weight), grad)

    return step


if __name__ == "__main__":
    main(sys.argv[1:])
