"""How long a pass of programs takes on an H100 or H200, predicted from what each of them moves.

A pass takes as long as its slowest part: tensor cores, shared memory and L2, by the processor that
has most programs, or device memory, which is read once; adding partial sums comes after it. Not in
it: the time until a program's first loads arrive, and that some programs have more blocks.
"""

import math

from bench.dev.programs import PROCESSORS, Pass
from bench.speed.roofline import Rates
from sparse_kernels.triton.shares import SUM_BYTES

# A processor moves 128 bytes of shared memory and multiplies 4,096 FLOPs in a cycle (989 TFLOP/s
# of the data sheet over 132 processors at 1.83 GHz). wgmma with N = 64 just keeps up; N = 32 reads
# 3 KB for what 2/3 of that time would multiply.
SHARED_BYTES_A_FLOP = 128 / 4096


def whole_waves(programs: int) -> int:
    """Return how many programs there would be if every processor had as many as the busiest.

    Programs that share a processor share its rates too: how many fit makes no difference.
    """
    return math.ceil(programs / PROCESSORS) * PROCESSORS


def seconds(work: Pass, rates: Rates) -> float:
    """Return what a pass takes with its partial sums added, without launches."""
    program = work.program
    slowest = max(
        program.flops / rates.tensor,
        program.shared / (rates.tensor * SHARED_BYTES_A_FLOP),
        program.l2 / rates.l2,
    )
    products = max(slowest * whole_waves(work.programs), work.memory / rates.memory)
    return products + SUM_BYTES * work.sums / rates.l2
