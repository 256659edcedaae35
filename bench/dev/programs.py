"""What one program of a GPU kernel multiplies and moves, and how many programs a pass has.

Counted from the tiles with which the kernels run on sm_90 in bf16, in rows, plain: those that take
a tap at a time, and those of strips, whose programs write runs of P pixels: P + S - 1 tiles of the
source and S blocks of weights feed P * S products. All programs of a pass are taken to have the
mean number of blocks.
"""

import math
from typing import NamedTuple

from sparse_kernels.triton.shares import SUM_BYTES, count_shares, step_bytes
from sparse_kernels.triton.tiles import gather_tile, power_of_two, weight_grad_tile

ARCH, BYTES = 90, 2
PROCESSORS = 132  # H100 SXM and H200: NVIDIA's data sheets
# Strips up to so wide are multiplied by runs.
WIDEST = 7


class Layer(NamedTuple):
    """A convolution on a batch of images; a linear layer is 1x1 on images of a pixel.

    channels: (O, C); kernel: (R, S); image: (H, W) of the output; block: (BO, BC).
    slots: Z, blocks that are stored.
    strips: whether they are those of whole strips.
    """

    channels: tuple[int, int]
    kernel: tuple[int, int]
    image: tuple[int, int]
    batch: int
    block: tuple[int, int]
    slots: int
    strips: bool = False
    stride: int = 1

    @property
    def positions(self) -> int:
        """Vectors of output channels."""
        return self.batch * self.image[0] * self.image[1]

    @property
    def has_runs(self) -> bool:
        """Whether kernels of strips take it."""
        return self.strips and self.stride == 1 and 1 < self.kernel[1] <= WIDEST

    @property
    def stored(self) -> int:
        """Numbers that the slots hold."""
        return self.slots * self.block[0] * self.block[1]

    @property
    def useful(self) -> float:
        """FLOPs of a pass with the weights that are stored, borders of images included."""
        share = 1.0
        for channels, block in zip(self.channels, self.block):
            share *= channels / (-(-channels // block) * block)
        return 2.0 * self.positions * self.stored * share

    @property
    def memory(self) -> float:
        """Bytes of input, output and stored weights, which cross device memory once a pass."""
        outputs, inputs = self.channels
        images = self.positions * (outputs + inputs * self.stride**2)
        return BYTES * (images + self.stored)


class Program(NamedTuple):
    """The mean program of a pass.

    flops: that its tensor cores multiply.
    l2: bytes that it reads or writes through L2.
    shared: bytes that go into shared memory and out of it, to the tensor cores.
    """

    flops: float
    l2: float
    shared: float


class Pass(NamedTuple):
    """A pass of a layer.

    programs: how many, all like the mean one.
    memory: bytes that cross device memory once.
    sums: numbers in fp32 of partial sums, which another kernel adds.
    """

    programs: int
    program: Program
    memory: float
    sums: float = 0.0


class RunTile(NamedTuple):
    """Runs of `length` pixels, of which a program of the sum takes BM at a time."""

    length: int
    bm: int


def run_gather_tile(written: int) -> RunTile:
    """Return the tile of forward or input gradient for strips: the kernels' table for sm_90."""
    return RunTile(min(8, 256 // power_of_two(written)), 64)


def run_weight_grad_tile(bc: int) -> RunTile:
    """Return the tile of the weight gradient: by wgmma, which needs 64 rows, or by mma."""
    return RunTile(4, 32 if bc >= 64 else 16)


def run_length(width: int, longest: int, whole: bool = False) -> int:
    """Return the pixels of a run, 0 if none fits: the longest that divides a row, if that is four.

    Else the one with the fewest loads. `whole`: it must not reach past the end of its row.
    """
    lengths = [length for length in (8, 4, 2) if length <= longest]
    dividing = [length for length in lengths if width % length == 0]
    if dividing and (whole or dividing[0] >= 4):
        return dividing[0]
    if whole:
        return 0
    return min(lengths, key=lambda length: (-(-width // length) * (length + 2), length))


def operands(rows: int, columns: int, depth: int) -> float:
    """Return the bytes that wgmma reads of shared memory for a product [rows, depth] x [, columns].

    An instruction has 64 rows and reads both operands.
    """
    return BYTES * depth * (rows + columns * rows / 64)


def gather(layer: Layer, transposed: bool, whole: bool = False) -> Pass:
    """Return the forward pass, or the input gradient when transposed.

    whole: runs must divide a row, as where statistics of the output are taken.
    """
    (bo, bc), (outputs, inputs) = layer.block, layer.channels
    summed, written = (bo, bc) if transposed else (bc, bo)
    blocks = -(-(inputs if transposed else outputs) // written)
    if layer.has_runs:
        tile = run_gather_tile(written)
        tile = tile._replace(length=run_length(layer.image[1], tile.length, whole))
        if tile.length:
            return _run_gather(layer, tile, summed, written, blocks)
    tile = gather_tile(ARCH, BYTES, False, summed, written, False, True)
    # Of the input gradient behind a stride, products with zeros that no byte is read for.
    zeros = layer.stride**2 if transposed else 1
    tiles, entries = layer.positions * zeros / tile.bm, layer.slots / blocks
    loaded = entries * summed * BYTES * (tile.bm / zeros + written)
    filled = entries * summed * BYTES * (tile.bm + written)
    program = Program(
        flops=2 * entries * tile.bm * summed * written,
        l2=loaded + BYTES * tile.bm * written,
        shared=filled + entries * operands(tile.bm, written, summed),
    )
    return Pass(math.ceil(tiles) * blocks, program, layer.memory)


def _run_gather(layer: Layer, tile: RunTile, summed: int, written: int, blocks: int) -> Pass:
    taps, (height, width) = layer.kernel[1], layer.image
    units = layer.batch * height * -(-width // tile.length)
    entries = layer.slots / taps / blocks
    per_channel = BYTES * ((tile.length + taps - 1) * tile.bm + taps * written)
    products = entries * tile.length * taps
    program = Program(
        flops=2 * products * tile.bm * summed * written,
        l2=entries * summed * per_channel
        + BYTES * tile.bm * written * width / -(-width // tile.length),
        shared=entries * summed * per_channel + products * operands(tile.bm, written, summed),
    )
    return Pass(-(-units // tile.bm) * blocks, program, layer.memory)


def weight_grad(layer: Layer, splits: int = 0) -> Pass:
    """Return the weight gradient, its positions in `splits` shares, 0 for the launchers' number."""
    bo, bc = layer.block
    taps, (height, width) = layer.kernel[1], layer.image
    if layer.has_runs:
        tile = run_weight_grad_tile(bc)
        length = run_length(width, tile.length)
        units, groups, bm = layer.batch * height * -(-width // length), layer.slots // taps, tile.bm
        loads = bc * (length + taps - 1) + bo * length
        products = length * taps
    else:
        tap = weight_grad_tile(ARCH, BYTES, False, bc, bo, False, True)
        units, groups, bm = layer.positions, layer.slots, tap.bm
        loads, products = bc + bo, 1
    steps = -(-units // bm)
    loaded, flops = BYTES * bm * loads, 2 * products * bm * bc * bo
    numbers = layer.stored // groups
    step = step_bytes(loaded, flops, BYTES, False)
    splits = splits or count_shares(groups, steps, step, numbers, PROCESSORS)
    splits = max(1, min(steps, splits))
    share = steps / splits
    # mma has both operands in registers, each tile in those of two warps.
    read = products * operands(bc, bo, bm) if bc >= 64 else 2 * loaded
    sums = layer.stored * splits if splits > 1 else 0
    result = (SUM_BYTES if sums else BYTES) * numbers
    program = Program(
        flops=share * flops,
        l2=share * loaded + result,
        shared=share * (loaded + read),
    )
    return Pass(groups * splits, program, layer.memory, sums)
