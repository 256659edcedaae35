"""Convolution on the `gemm` path: a tap is a shift of pixels, so that nothing is unfolded.

A few images at a time are copied to panels (panels.py), under a stride the input to some for each
of its phases, x[phase :: stride]. A tap brings every pixel of the output together with the pixel of
the input that is a fixed number of places away. Above and below the images the panels end; beside
them it would meet pixels of the next row, so the columns that it carries over an edge are zero in
its turn.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

from torch import Tensor

from sparse_kernels.cpu.linear import (
    blocks,
    inside,
    linear,
    linear_input_grad,
    linear_weight_grad,
    precise,
    rows_at_a_time,
    total,
    zero_values,
)
from sparse_kernels.cpu.panels import Panels
from sparse_kernels.cpu.threads import shared
from sparse_kernels.index_tensors import IndexTensors
from sparse_kernels.memory_order import in_order, order_of

Ints = Sequence[int]
Index = Sequence[Tensor]
# The input's panels, by phase along h and phase along w.
Phases = dict[tuple[int, int], Panels]


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    y: Tensor,
    index: Index,
    sizes: Ints,
    geometry: Sequence[Ints],
) -> Tensor:
    """Return the output [N, O, P, Q] of x [N, C, H, W], in the order of y.

    Args:
        x, values, bias, index, sizes: as in convolution.py.
        y: empty, of the result's shape and order; it is written, unless a new tensor is returned.
        geometry: stride, padding, dilation.
    """
    if _is_pointwise(sizes, geometry):
        found = linear(_pixels(_strided(x, geometry), y), values, bias, index, sizes)
        return _images(found, y)
    grid = _Grid(x, y, index, sizes, geometry)
    weights = inside(values.to(precise(x.dtype)), index, sizes)

    def products(x: Tensor, y: Tensor) -> None:
        for inputs, output in grid.panels(x, y):
            _read(inputs)
            output.fill(bias)
            for y_pixels, x_pixels, slot in grid.products(inputs, output):
                y_pixels.addmm_(x_pixels, weights[slot])
            output.write()

    shared(products, x, y, rows=grid.pixels * len(x))
    return y


def conv2d_input_grad(
    grad: Tensor, values: Tensor, dx: Tensor, index: Index, sizes: Ints, geometry: Sequence[Ints]
) -> Tensor:
    """Return the input gradient [N, C, H, W] of dy [N, O, P, Q]; dx is as y of conv2d."""
    if _is_pointwise(sizes, geometry):
        found = linear_input_grad(_pixels(grad, dx), values, index, sizes)
        if max(geometry[0]) == 1:
            return _images(found, dx)
        _strided(dx.zero_(), geometry).copy_(_images(found, dx))
        return dx
    grid = _Grid(dx, grad, index, sizes, geometry, reads_output=True)
    weights = [block.T for block in inside(values.to(precise(grad.dtype)), index, sizes)]

    def products(dx: Tensor, grad: Tensor) -> None:
        for inputs, output in grid.panels(dx, grad):
            output.read()
            for phase in inputs.values():
                phase.fill()
            for y_pixels, x_pixels, slot in grid.products(inputs, output):
                x_pixels.addmm_(y_pixels, weights[slot])
            for phase in inputs.values():
                phase.write()

    shared(products, dx, grad, rows=grid.pixels * len(grad))
    return dx


def conv2d_weight_grad(
    x: Tensor, grad: Tensor, index: Index, sizes: Ints, geometry: Sequence[Ints]
) -> Tensor:
    """Return dvalues [Z, BC, BO]; zero in unused slots and outside the weight."""
    if _is_pointwise(sizes, geometry):
        pixels = _pixels(_strided(x, geometry), grad)
        return linear_weight_grad(pixels, _pixels(grad, grad), index, sizes)
    grid = _Grid(x, grad, index, sizes, geometry)

    def products(x: Tensor, grad: Tensor) -> Tensor:
        dvalues = zero_values(x, index, sizes)
        results = inside(dvalues, index, sizes)
        for inputs, output in grid.panels(x, grad):
            _read(inputs)
            output.read()
            for y_pixels, x_pixels, slot in grid.products(inputs, output):
                results[slot].addmm_(x_pixels.T, y_pixels)
        return dvalues

    return total(shared(products, x, grad, rows=grid.pixels * len(x))).to(x.dtype)


def _is_pointwise(sizes: Ints, geometry: Sequence[Ints]) -> bool:
    return tuple(sizes[2:4]) == (1, 1) and not any(geometry[1])


def _strided(x: Tensor, geometry: Sequence[Ints]) -> Tensor:
    """Return the pixels of x that a pointwise convolution reads."""
    return x[..., :: geometry[0][0], :: geometry[0][1]]


def _pixels(x: Tensor, like: Tensor) -> Tensor:
    """View images as a matrix of pixels [..., C]; in which order does not matter, if in one."""
    return x.permute(2, 3, 0, 1) if order_of(like) == "rows" else x.permute(0, 2, 3, 1)


def _images(pixels: Tensor, like: Tensor) -> Tensor:
    """Undo _pixels, and return the images in the order of `like`."""
    order = order_of(like)
    inverse = (2, 3, 0, 1) if order == "rows" else (0, 3, 1, 2)
    return in_order(pixels.permute(inverse), order)


class _Grid:
    """Which pixels of a convolution's input and output meet in which block."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        index: Index,
        sizes: Ints,
        geometry: Sequence[Ints],
        reads_output: bool = False,
    ) -> None:
        (self.stride, padding, dilation), (self.bo, self.bc) = geometry, sizes[4:]
        self.reads_output = reads_output
        # Those that have a pixel.
        phases = (range(min(self.stride[i], x.shape[2 + i])) for i in (0, 1))
        self.phases = list(itertools.product(*phases))
        # Output pixel p reads pixel p + offset of x[phase :: stride]: (offset, phase) of each tap.
        self.along_h, self.along_w = (
            [divmod(tap * dilation[i] - padding[i], self.stride[i]) for tap in range(sizes[2 + i])]
            for i in (0, 1)
        )
        self.pitch = max(-(-x.shape[3] // self.stride[1]), y.shape[3])
        self.pixels = y.shape[2] * self.pitch
        # (out block, in block, tap_h, slot) by tap_w, ordered by what is read: it stays in a cache.
        self.steps: dict[int, list[tuple[int, int, int, int]]] = {}
        for out_block, in_block, tap_h, tap_w, slot in blocks(IndexTensors.of(index).forward):
            if (self.along_h[tap_h][1], self.along_w[tap_w][1]) in self.phases:
                self.steps.setdefault(tap_w, []).append((out_block, in_block, tap_h, slot))
        for steps in self.steps.values():
            steps.sort(key=lambda step: (step[0 if reads_output else 1], step[2]))

    def panels(self, x: Tensor, y: Tensor) -> Iterator[tuple[Phases, Panels]]:
        """Yield panels of input and output for a few images at a time."""
        step_h, step_w = self.stride
        images = max(1, rows_at_a_time((self.bo, self.bc)) // self.pixels)
        for some, results in zip(x.split(images), y.split(images)):
            inputs = {
                (a, b): self._panels(some[..., a::step_h, b::step_w], self.bc)
                for a, b in self.phases
            }
            yield inputs, self._panels(results, self.bo)

    def products(self, inputs: Phases, output: Panels) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield (pixels of the output, those of the input that they meet, slot) of every block.

        Where a pixel meets none, what is read is zero, until the next triple is asked for.
        """
        for tap_w, steps in self.steps.items():
            right, b = self.along_w[tap_w]
            read = [inputs[phase] for phase in self.phases if phase[1] == b]
            with contextlib.ExitStack() as stack:
                for panels in [output] if self.reads_output else read:
                    stack.enter_context(panels.hidden(-right if self.reads_output else right))
                meeting = {}
                for tap_h in {step[2] for step in steps}:
                    down, a = self.along_h[tap_h]
                    shift = down * self.pitch + right
                    meeting[tap_h] = _overlap(output, inputs[a, b], shift)
                for out_block, in_block, tap_h, slot in steps:
                    y_pixels, x_pixels = meeting[tap_h]
                    yield y_pixels[out_block], x_pixels[in_block], slot

    def _panels(self, images: Tensor, block: int) -> Panels:
        return Panels(images.permute(2, 3, 0, 1), block, self.pitch, precise(images.dtype))


def _overlap(output: Panels, read: Panels, shift: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the pixels m of the output for which the input has a pixel m + shift, and those."""
    shift *= output.images
    first = max(0, -shift)
    last = max(first, min(output.length, read.length - shift))
    return output.rows(first, last), read.rows(first + shift, last + shift)


def _read(inputs: Phases) -> None:
    for phase in inputs.values():
        phase.read()
