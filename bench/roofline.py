"""What arithmetic says the kernels can reach on an H200: python -m bench.roofline prints the table.

Three times bound a pass: its active FLOPs over the tensor cores' rate, the bytes that must cross
device memory once, and the bytes that tiles of BM x BO read through L2. The predicted efficiency is
the first over the largest: the share of the dense rate, per active FLOP. The L2 rate is an
assumption (about the rate of shared traffic seen on such chips); nothing here is a measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

TENSOR_RATE = 790e12  # bf16 FLOP/s of a large dense product
MEMORY_RATE = 4.8e12  # bytes/s, data sheet
L2_RATE = 5.5e12  # bytes/s, assumed
BATCH, TAPS, BM, ELEMENT = 128, 9, 128, 2
LAYERS = ((160, 32), (320, 16), (640, 8))
BLOCKS = (32, 64, 128)
DENSITIES = (0.2, 0.1)


class Bound(NamedTuple):
    """One pass of one layer: FLOPs, bytes of device memory and of L2, and the times they take."""

    channels: int
    size: int
    block: int
    density: float
    passes: str
    flops: float
    memory: float
    l2: float

    @property
    def microseconds(self) -> tuple[float, float, float]:
        """Times that the tensor cores, device memory and L2 allow."""
        times = (self.flops / TENSOR_RATE, self.memory / MEMORY_RATE, self.l2 / L2_RATE)
        return tuple(1e6 * t for t in times)

    @property
    def efficiency(self) -> float:
        """Predicted share of the dense rate, per active FLOP."""
        return self.microseconds[0] / max(self.microseconds)


def bounds() -> Iterator[Bound]:
    """Yield the passes of WRN-28-10's 3x3 layers in bf16; forward and input gradient are alike."""
    for channels, size in LAYERS:
        positions = BATCH * size * size
        for block in BLOCKS:
            for density in DENSITIES:
                blocks = density * TAPS * (-(-channels // block)) ** 2
                stored = blocks * block * block * ELEMENT
                flops = 2 * positions * blocks * block * block
                images = 2 * positions * channels * ELEMENT
                rows = positions * blocks * block * ELEMENT
                weights = positions / BM * stored
                facts = (channels, size, block, density)
                yield Bound(
                    *facts, "forward, input gradient", flops, images + stored, rows + weights
                )
                yield Bound(*facts, "weight gradient", flops, images + 2 * stored, 2 * rows)


def table() -> str:
    """Return the Markdown table."""
    lines = [
        "| layer | block | density | pass | GFLOP | MB | MB through L2 | µs tensor / memory / L2 "
        "| predicted | measured |",
        "|" + "---|" * 10,
    ]
    for b in bounds():
        times = " / ".join(f"{t:.0f}" for t in b.microseconds)
        lines.append(
            f"| {b.channels} at {b.size}x{b.size} | {b.block} | {b.density} | {b.passes} | "
            f"{b.flops / 1e9:.1f} | {b.memory / 1e6:.0f} | {b.l2 / 1e6:.0f} | {times} | "
            f"{b.efficiency:.0%} | not measured |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
