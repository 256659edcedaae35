"""In how many shares a weight gradient is summed: what its programs take, by a model.

Programs of all shares run side by side, so more of them fill a GPU evenly; but each writes sums in
fp32 that are read again. Time is counted in bytes that pass through L2, which bounds these kernels.
The rates are assumptions, about those of an H100: 790 TFLOP/s of dense products in 16 bits, 5.5
TB/s through L2, 132 processors.
"""

import functools

SUM_BYTES = 4
# Numbers of 4 bytes are multiplied at half of the rate by tensor cores, without TF32 by none.
FLOPS_A_BYTE = {2: 144, 4: 72}
EXACT_FLOPS_A_BYTE = 12
# What L2 brings a processor in 0.35 us: loads take 0.7, and are asked for two steps ahead.
WAIT = 15_000
# What L2 brings a processor in the 1.4 us that the kernel which adds shares takes to start.
ADDING = 60_000
# What saves less of the time of a single share is less than the model knows.
NOTICEABLE = 0.9
# Looked at are as many shares as make so many programs a processor, and at least as many shares.
MOST = 8


def step_bytes(loaded: int, flops: int, itemsize: int, exact: bool) -> int:
    """Return what a step of a program takes, in bytes through L2.

    Args:
        loaded: bytes that it loads.
        flops: that it multiplies.
        itemsize, exact: as of tiles.weight_grad_tile.
    """
    return max(loaded, flops // (EXACT_FLOPS_A_BYTE if exact else FLOPS_A_BYTE[itemsize]))


@functools.cache
def count_shares(programs: int, steps: int, step: int, sums: int, processors: int) -> int:
    """Return the number of shares that is fastest, the smallest if there are several.

    It is 1 unless others are noticeably faster. All wait for the processor that has most programs.

    Args:
        programs: of a single share.
        steps: of a program then.
        step: of step_bytes.
        sums: numbers that a program writes.
        processors: of the GPU.
    """

    def cost(shares: int) -> float:
        waves = -(-programs * shares // processors)
        products = -(-steps // shares) * max(waves * step, WAIT)
        if shares == 1:
            return products
        return products + ADDING + SUM_BYTES * sums * (waves + programs * shares / processors)

    most = max(1, min(steps, max(MOST, MOST * processors // programs)))
    best = min(range(1, most + 1), key=cost)
    return best if cost(best) < NOTICEABLE * cost(1) else 1
