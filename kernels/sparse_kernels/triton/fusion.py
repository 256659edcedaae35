"""What a pass does besides multiplying: transform of the input, residual, ReLU, statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Fusion:
    """Options of a pass; see fusion_kernels.py.

    scale, shift: float32 [C], the input is read as scale * x + shift; both or neither.
    relu_input: its negative part then becomes zero.
    residual: added to what is written, and in its order.
    relu: the output's negative part becomes zero (forward).
    statistics: write the output's sums for batch norm (forward).
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    relu_input: bool = False
    residual: Tensor | None = None
    relu: bool = False
    statistics: bool = False

    @property
    def input_kind(self) -> str:
        """The kernels' INPUT."""
        if self.scale is None:
            return "plain"
        return "affine_relu" if self.relu_input else "affine"

    def writes_sums(self, transposed: bool) -> bool:
        """Whether a gather pass returns two sums by tile and channel."""
        return self.scale is not None if transposed else self.statistics

    def name(self, transposed: bool) -> str:
        """Return what the compiled kernel depends on, as a word."""
        switches = (
            ("residual", self.residual is not None),
            ("relu", self.relu and not transposed),
            ("statistics", self.statistics and not transposed),
        )
        return "+".join([self.input_kind, *(name for name, on in switches if on)])

    def constants(self, transposed: bool) -> dict[str, Any]:
        """Return the constants of a gather kernel."""
        return {"INPUT": self.input_kind, "RELU": self.relu and not transposed}


PLAIN = Fusion()
