"""What a pass does besides multiplying: transform of the input, residual, statistics."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Fusion:
    """Options of a pass; see fusion_kernels.py.

    scale, shift: float32 [C], the input is read as scale * x + shift; both or neither.
    relu_input: its negative part then becomes zero.
    residual: added to what is written, and in its order.
    statistics: write the output's sums for batch norm (forward).
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    relu_input: bool = False
    residual: Tensor | None = None
    statistics: bool = False

    @property
    def input_kind(self) -> str:
        """The kernels' INPUT."""
        if self.scale is None:
            return "plain"
        return "affine_relu" if self.relu_input else "affine"

    def writes_sums(self, transposed: bool) -> bool:
        """Whether a gather pass writes two sums by tile and channel."""
        return self.scale is not None if transposed else self.statistics

    def name(self, transposed: bool) -> str:
        """Return what the compiled kernel depends on, as a word."""
        residual = "+residual" if self.residual is not None else ""
        statistics = "+statistics" if self.statistics and not transposed else ""
        return self.input_kind + residual + statistics


PLAIN = Fusion()
