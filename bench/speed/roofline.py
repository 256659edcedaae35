"""The roofline of a pass that was measured on a GPU: the least time that arithmetic allows.

Three times bound a pass: its active FLOPs over the tensor cores' rate, the bytes that must cross
device memory once, and the bytes that tiles of BM x BO read through L2, a tap at a time. The rates
of tensor cores and L2 are assumptions (about those seen on such chips), that of memory is the data
sheet's. What kernels should take, waves and all, is predicted by bench.dev.roofline.
"""

from typing import NamedTuple


class Rates(NamedTuple):
    """What a GPU does in a second: bf16 FLOPs of a large dense product, bytes of memory, of L2."""

    tensor: float
    memory: float
    l2: float


H200 = Rates(790e12, 4.8e12, 5.5e12)
# By the beginning of the device's name. An H100 PCIe or NVL has other rates, a GH200 too.
RATES = {"NVIDIA H200": H200, "NVIDIA H100 80GB HBM3": H200._replace(memory=3.35e12)}
BM, ELEMENT = 128, 2


def least_times(flops: float, memory: float, l2: float, rates: Rates = H200) -> tuple[float, ...]:
    """Return the seconds that the tensor cores, device memory and L2 need at least."""
    return flops / rates.tensor, memory / rates.memory, l2 / rates.l2


def nearest_bound(flops: float, memory: float, l2: float, rates: Rates = H200) -> float:
    """Return the largest of them; the share of the roofline is this over the time measured."""
    return max(least_times(flops, memory, l2, rates))


def rates_of(device: str) -> Rates | None:
    """Return the rates of a device by its name, as in the reports; None where they are unknown."""
    return next((rates for name, rates in RATES.items() if device.startswith(name)), None)


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
