"""Pixels of a few images as matrices, one for each block of channels: the gemm path's memory."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class Panels:
    """Matrices [h * pitch * n, block] of pixels [h, w, n, C]; the last may be narrower.

    A row of pixels is `pitch` long, at least w. Panels are made empty, and either read or filled.
    """

    def __init__(self, pixels: Tensor, block: int, pitch: int, dtype: torch.dtype) -> None:
        height, self.width, self.images, channels = pixels.shape
        self.pixels = pixels
        shape = (-(-channels // block), height, pitch, self.images, block)
        self.data = pixels.new_empty(shape, dtype=dtype)
        self.matrices = self.data.flatten(1, 3)
        self.length, self.narrower = self.matrices.shape[1], channels % block

    def read(self) -> None:
        """Copy the pixels to the panels."""
        self.data[:, :, self.width :] = 0
        for panel, pixels in self._beside(self.pixels):
            panel.copy_(pixels)

    def fill(self, bias: Tensor | None = None) -> None:
        """Set every pixel to the bias [C], or to zero."""
        self.data.zero_()
        if bias is not None:
            for panel, pixels in self._beside(bias.expand(self.pixels.shape)):
                panel.copy_(pixels)

    def write(self) -> None:
        """Copy the panels to the pixels."""
        for panel, pixels in self._beside(self.pixels):
            pixels.copy_(panel)

    def rows(self, first: int, last: int) -> list[Tensor]:
        """Return a range of rows of every matrix."""
        found = list(self.matrices[:, first:last].unbind(0))
        if self.narrower:
            found[-1] = found[-1][:, : self.narrower]
        return found

    @contextlib.contextmanager
    def hidden(self, columns: int) -> Iterator[None]:
        """Make the first columns of pixels zero for a while; the last -columns if negative."""
        pitch = self.data.shape[2]
        edge = slice(columns) if columns > 0 else slice(max(0, pitch + columns), pitch)
        edge = self.data[:, :, edge]
        kept = edge.clone()
        edge.zero_()
        yield
        edge.copy_(kept)

    def _beside(self, pixels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the written part of each panel, and its channels of pixels."""
        panels = self.data[:, :, : self.width].unbind(0)
        for panel, block in zip(panels, pixels.split(self.data.shape[-1], 3)):
            yield panel[..., : block.shape[-1]], block
