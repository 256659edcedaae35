"""What one program of a GPU kernel multiplies and moves, and how many programs a pass has.

Counted from the tiles with which the kernels run on sm_90 in bf16, in rows, plain: those that take
a tap at a time, and those of strips, whose programs write runs of P pixels: P + S - 1 tiles of the
source and S blocks of weights feed P * S products. All programs of a pass are taken to have the
mean number of blocks.
"""

import math
from typing import NamedTuple

from sparse_kernels.triton.run_tiles import (
    WIDEST,
    RunTile,
    run_gather_tile,
    run_length,
    run_weight_grad_tile,
)
from sparse_kernels.triton.run_weight_grad import count_groups
from sparse_kernels.triton.shares import SUM_BYTES, count_shares, step_bytes
from sparse_kernels.triton.tiles import gather_tile, weight_grad_tile

ARCH, BYTES = 90, 2
PROCESSORS = 132  # H100 SXM and H200: NVIDIA's data sheets


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
    present: share of the multiplied blocks that are there, not lacking in a group of strips.
    """

    programs: int
    program: Program
    memory: float
    sums: float = 0.0
    present: float = 1.0


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
        run = run_gather_tile(ARCH, BYTES, False, summed, written, layer.kernel[1], False, True)
        length = run_length(layer.image[1], run.length if run else 0, whole)
        if run and length:
            return _run_gather(layer, run._replace(length=length), summed, written, blocks)
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


def _run_gather(layer: Layer, run: RunTile, summed: int, written: int, blocks: int) -> Pass:
    taps, (height, width), bm = layer.kernel[1], layer.image, run.tile.bm
    units = layer.batch * height * -(-width // run.length)
    entries = layer.slots / taps / blocks
    per_channel = BYTES * ((run.length + taps - 1) * bm + taps * written)
    products = entries * run.length * taps
    program = Program(
        flops=2 * products * bm * summed * written,
        l2=entries * summed * per_channel + BYTES * bm * written * width / -(-width // run.length),
        shared=entries * summed * per_channel + products * operands(bm, written, summed),
    )
    return Pass(-(-units // bm) * blocks, program, layer.memory)


class Step(NamedTuple):
    """A step of a program of the weight gradient, of BM runs or positions.

    loads, filled: numbers that it reads through L2 and puts into shared memory, of each of them.
    products: [BC, BM] x [BM, BO]; blocks: [BC, BO] that they add to.
    present: share of them that are there.
    """

    bm: int
    loads: float
    filled: int
    products: int
    blocks: int
    present: float = 1.0


def weight_grad(layer: Layer, splits: int = 0, fused: bool = False) -> Pass:
    """Return the weight gradient.

    splits: shares of its positions, 0 for the launchers' number.
    fused: the input is transformed as it is loaded.
    """
    bo, bc = layer.block
    if layer.has_runs:
        run = run_weight_grad_tile(ARCH, BYTES, False, bc, bo, layer.kernel[1], fused, True)
        if run:
            return _run_weight_grad(layer, run, splits)
    bm = weight_grad_tile(ARCH, BYTES, False, bc, bo, fused, True).bm
    return _shares(layer, Step(bm, bc + bo, bc + bo, 1, 1), layer.slots, layer.positions, splits)


def _run_weight_grad(layer: Layer, run: RunTile, splits: int) -> Pass:
    (bo, bc), taps, (height, width) = layer.block, layer.kernel[1], layer.image
    length, strips = run_length(width, run.length), layer.slots // taps
    groups = count_groups(strips, -(-layer.channels[0] // bo), run.strips)
    source, gradient = bc * (length + run.taps - 1), bo * length
    present = strips / (groups * run.strips)
    # Strips that a group lacks are multiplied, as zeros that are not read.
    step = Step(
        run.tile.bm,
        loads=source * run.strips * present + gradient,
        filled=source * run.strips + gradient,
        products=length * run.taps * run.strips,
        blocks=run.taps * run.strips,
        present=present,
    )
    units = layer.batch * height * -(-width // length)
    return _shares(layer, step, groups * -(-taps // run.taps), units, splits)


def _shares(layer: Layer, step: Step, programs: int, units: int, splits: int) -> Pass:
    bo, bc = layer.block
    steps, flops = -(-units // step.bm), 2 * step.products * step.bm * bc * bo
    filled, numbers = BYTES * step.bm * step.filled, step.blocks * bc * bo
    cost = step_bytes(filled, flops, BYTES, False)
    splits = splits or count_shares(programs, steps, cost, numbers, PROCESSORS)
    splits = max(1, min(steps, splits))
    share = steps / splits
    # mma has both operands in registers, each tile in those of two warps.
    read = step.products * operands(bc, bo, step.bm) if bc >= 64 else 2 * filled
    sums = layer.stored * splits if splits > 1 else 0
    result = (SUM_BYTES if sums else BYTES) * layer.stored / programs
    program = Program(
        flops=share * flops,
        l2=share * BYTES * step.bm * step.loads + result,
        shared=share * (filled + read),
    )
    return Pass(programs * splits, program, layer.memory, sums, step.present)
