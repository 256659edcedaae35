"""Convolution on the `gemm` path: a tap is a shift of rows, so that nothing is unfolded.

A few images at a time are copied to panels: for each block of channels (and, under a stride, each
phase of the input, x[phase :: stride]) a matrix whose rows are the pixels in the order (h, w, n).
Rows of an image are `pitch` pixels apart, which leaves enough zeros beside it that no tap reaches
another row; above and below the image a panel ends. In which order the images lie in memory
matters little, as they are copied anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sparse_kernels.activation import in_order, order_of
from sparse_kernels.gemm import (
    ROWS,
    Step,
    add_outer_products,
    add_products,
    blocks,
    linear,
    linear_input_grad,
    linear_weight_grad,
    precise,
    total,
    zero_values,
)
from sparse_kernels.layout import PassIndex
from sparse_kernels.threads import shared

Ints = Sequence[int]
Index = Sequence[Tensor]
# Phase along h, phase along w, block of channels; an output has the phase (0, 0) alone.
Key = tuple[int, int, int]
# The pixels [h, w, n, channels of the block] of some images.
Views = dict[Key, Tensor]


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
    grid = _Grid(x, y, sizes, *geometry)
    steps = list(grid.steps(index))
    weights = values.to(precise(x.dtype)).unbind(0)

    def products(x: Tensor, y: Tensor) -> None:
        for images, results in grid.chunks(x, y):
            grid.convolve(grid.input(images), grid.output(results), steps, weights, bias)

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
    grid = _Grid(dx, grad, sizes, *geometry)
    # Sorted by what is written, which then stays in the caches.
    steps = sorted(
        (read, written, -shift, slot) for written, read, shift, slot in grid.steps(index)
    )
    weights = values.to(precise(grad.dtype)).mT.unbind(0)

    def products(dx: Tensor, grad: Tensor) -> None:
        for results, images in grid.chunks(dx, grad):
            grid.convolve(grid.output(images), grid.input(results), steps, weights, None)

    shared(products, dx, grad, rows=grid.pixels * len(grad))
    return dx


def conv2d_weight_grad(
    x: Tensor, grad: Tensor, index: Index, sizes: Ints, geometry: Sequence[Ints]
) -> Tensor:
    """Return dvalues [Z, BC, BO]; zero in unused slots and outside the weight."""
    if _is_pointwise(sizes, geometry):
        pixels = _pixels(_strided(x, geometry), grad)
        return linear_weight_grad(pixels, _pixels(grad, grad), index, sizes)
    grid = _Grid(x, grad, sizes, *geometry)
    steps = list(grid.steps(index))
    read, written = {source for _, source, _, _ in steps}, {grad for grad, _, _, _ in steps}

    def products(x: Tensor, grad: Tensor) -> Tensor:
        dvalues = zero_values(x, index, sizes)
        for images, gradients in grid.chunks(x, grad):
            sources = grid.read(grid.input(images), read)
            dy = grid.read(grid.output(gradients), written)
            add_outer_products(dvalues, dy, sources, _in_rows(steps, len(images)))
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
    """How the pixels of a convolution's input and output lie in panels."""

    def __init__(
        self, x: Tensor, y: Tensor, sizes: Ints, stride: Ints, padding: Ints, dilation: Ints
    ) -> None:
        self.stride, (self.bo, self.bc) = stride, sizes[4:]
        # The phases that have a pixel.
        self.phases = [min(stride[i], x.shape[2 + i]) for i in (0, 1)]
        # Output pixel p reads pixel p + offset of x[phase :: stride]: (offset, phase) of each tap.
        self.rows, self.columns = (
            [divmod(tap * dilation[i] - padding[i], stride[i]) for tap in range(sizes[2 + i])]
            for i in (0, 1)
        )
        offsets = [offset for offset, _ in self.columns]
        width = -(-x.shape[3] // stride[1])
        self.pitch = max(width - min(0, *offsets), y.shape[3] + max(0, *offsets))
        self.pixels = y.shape[2] * self.pitch

    def chunks(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a few images of input and output at a time."""
        images = max(1, ROWS // self.pixels)
        return zip(x.split(images), y.split(images))

    def input(self, x: Tensor) -> Views:
        """Return the pixels of x by phase and block of channels."""
        pixels, (step_h, step_w) = x.permute(2, 3, 0, 1), self.stride
        return {
            (a, b, block): view
            for a in range(self.phases[0])
            for b in range(self.phases[1])
            for block, view in enumerate(pixels[a::step_h, b::step_w].split(self.bc, 3))
        }

    def output(self, y: Tensor) -> Views:
        """Return the pixels of y by block of channels."""
        views = y.permute(2, 3, 0, 1).split(self.bo, 3)
        return {(0, 0, block): view for block, view in enumerate(views)}

    def steps(self, index: Index) -> Iterator[tuple[Key, Key, int, int]]:
        """Yield (panel of the output, panel of the input, shift in pixels, slot) by block."""
        for out_block, in_block, tap_h, tap_w, slot in blocks(PassIndex.forward(index)):
            (down, a), (right, b) = self.rows[tap_h], self.columns[tap_w]
            if a < self.phases[0] and b < self.phases[1]:
                yield (0, 0, out_block), (a, b, in_block), down * self.pitch + right, slot

    def read(self, views: Views, keys: set[Key]) -> dict[Key, Tensor]:
        """Return panels [h * pitch * n, channels] of the views that are asked for."""
        return {key: self._panel(views[key]).flatten(0, 2) for key in keys}

    def convolve(
        self,
        images: Views,
        results: Views,
        steps: Sequence[Step],
        weights: Sequence[Tensor],
        bias: Tensor | None,
    ) -> None:
        """Write results: the sum of the steps, and the bias of output channels."""
        sources = self.read(images, {read for _, read, _, _ in steps})
        panels = {key: self._empty(view).zero_() for key, view in results.items()}
        matrices = {key: panel.flatten(0, 2) for key, panel in panels.items()}
        number = next(iter(results.values())).shape[2]
        add_products(matrices, sources, _in_rows(steps, number), weights)
        for key, view in results.items():
            found = panels[key][:, : view.shape[1]]
            if bias is None:
                view.copy_(found)
            else:
                torch.add(found, bias[key[2] * self.bo :][: view.shape[3]], out=view)

    def _panel(self, view: Tensor) -> Tensor:
        width = view.shape[1]
        if view.stride(3) != 1:
            # In two steps, each with one of its sides in sequence: half of the time.
            view = view.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
        panel = self._empty(view)
        panel[:, :width] = view
        panel[:, width:] = 0
        return panel

    def _empty(self, view: Tensor) -> Tensor:
        height, _, images, channels = view.shape
        shape = (height, self.pitch, images, channels)
        return view.new_empty(shape, dtype=precise(view.dtype))


def _in_rows(steps: Sequence[Step], images: int) -> list[Step]:
    """Return steps whose shifts count rows of panels of so many images, not pixels."""
    return [(written, read, shift * images, slot) for written, read, shift, slot in steps]
