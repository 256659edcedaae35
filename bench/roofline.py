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
        return tuple(1e6 * t for t in least_times(self.flops, self.memory, self.l2))

    @property
    def efficiency(self) -> float:
        """Predicted share of the dense rate, per active FLOP."""
        return self.microseconds[0] / max(self.microseconds)


def least_times(flops: float, memory: float, l2: float) -> tuple[float, float, float]:
    """Return the seconds that the tensor cores, device memory and L2 need at least."""
    return flops / TENSOR_RATE, memory / MEMORY_RATE, l2 / L2_RATE


def nearest_bound(flops: float, memory: float, l2: float) -> float:
    """Return the largest of them; the share of the roofline is this over the time measured."""
    return max(least_times(flops, memory, l2))


def is_h200() -> bool:
    """Return whether the rates above are those of the GPU in use."""
    import torch

    return torch.cuda.is_available() and "H200" in torch.cuda.get_device_name()


def bounds() -> Iterator[Bound]:
    """Yield the passes of WRN-28-10's 3x3 layers in bf16; forward and input gradient are alike."""
    for channels, size in LAYERS:
        for block in BLOCKS:
            for density in DENSITIES:
                blocks = density * TAPS * (-(-channels // block)) ** 2
                positions = BATCH * size * size
                facts = (channels, size, block, density)
                for passes in ("forward, input gradient", "weight gradient"):
                    work = traffic(passes, positions, 2 * channels, blocks, (block, block))
                    yield Bound(*facts, passes, *work)


def traffic(
    passes: str, positions: int, channels: int, blocks: float, block: tuple[int, int]
) -> tuple[float, float, float]:
    """Return FLOPs, bytes of device memory and bytes through L2 of a pass in bf16.

    Args:
        passes: its name; all but "weight gradient" are like the forward.
        positions: vectors of output channels.
        channels: input and output channels together.
        blocks, block: how many are active, and (BO, BC).
    """
    bo, bc = block
    stored = blocks * bo * bc * ELEMENT
    flops = 2 * positions * blocks * bo * bc
    images = positions * channels * ELEMENT
    rows = positions * blocks * bc * ELEMENT
    if passes == "weight gradient":
        return flops, images + 2 * stored, rows + positions * blocks * bo * ELEMENT
    return flops, images + stored, rows + positions / BM * stored


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
