"""Triton kernels that add what other kernels wrote by tile or share, in a fixed order.

Legend: LONG and SHORT, (height, width) of a step of `added` where what is added are few and long
vectors, and where they are many and short; SUMS tiles x BC channels, a step of `joined`.
"""

import triton
import triton.language as tl


@triton.jit
def added(
    partial,
    gradient,
    tiles,
    totals,
    SPLITS,
    ELEMENTS,
    TILES,
    VECTOR,
    LONG: tl.constexpr,
    SHORT: tl.constexpr,
):
    """Write the sums over the first dimension of two matrices: two jobs in one grid.

    partial is [SPLITS, ELEMENTS], which the first programs add, tiles is [TILES, VECTOR]. What
    belongs to a job that nobody wants is None.
    """
    program = tl.program_id(0)
    if partial is not None:
        if program * LONG[1] < ELEMENTS:
            _add(partial, gradient, program, SPLITS, ELEMENTS, LONG)
        program -= tl.cdiv(ELEMENTS, LONG[1])
    if tiles is not None and program >= 0:
        _add(tiles, totals, program, TILES, VECTOR, SHORT)


@triton.jit
def _add(source, target, program, HEIGHT, WIDTH, STEP: tl.constexpr):
    """Write the sums of a program's columns of source [HEIGHT, WIDTH]."""
    ROWS: tl.constexpr = STEP[0]
    COLUMNS: tl.constexpr = STEP[1]
    column = program * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, HEIGHT, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < HEIGHT)[:, None] & (column < WIDTH)[None, :]
        place = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        sums += tl.load(source + place, mask=mask, other=0.0)
    total = tl.sum(sums, 0).to(target.dtype.element_ty)
    tl.store(target + column, total, mask=column < WIDTH)


@triton.jit
def joined(
    partial,
    vectors,
    weight,
    bias,
    running_mean,
    running_variance,
    batches,
    M,
    C,
    SIZE,
    TILES,
    eps,
    momentum,
    SUMS: tl.constexpr,
    BC: tl.constexpr,
):
    """Join the tiles' means and variances, of SIZE positions each but for the last, of M in all.

    vectors [2, C] gets mean and biased variance; where there are weight and bias it is [4, C] and
    gets the batch norm too, as scale and shift. Running statistics move by `momentum`, the variance
    by the unbiased one. Squares are taken around the first tile's mean, so that a large mean
    cancels nothing.
    """
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    existing = c < C
    pivot = tl.load(partial + c, mask=existing, other=0.0)
    first = tl.zeros((BC,), tl.float32)
    second = tl.zeros((BC,), tl.float32)
    for start in range(0, TILES, SUMS):
        tile = start + tl.arange(0, SUMS)
        count = tl.maximum(tl.minimum(M - tile * SIZE, SIZE), 0).to(tl.float32)[:, None]
        mask = (tile < TILES)[:, None] & existing[None, :]
        place = partial + tile.to(tl.int64)[:, None] * 2 * C + c[None, :]
        off = tl.where(mask, tl.load(place, mask=mask, other=0.0) - pivot[None, :], 0.0)
        first += tl.sum(off * count, 0)
        second += tl.sum((off * off + tl.load(place + C, mask=mask, other=0.0)) * count, 0)
    off = first / M
    mean = pivot + off
    variance = tl.maximum(second / M - off * off, 0.0)
    tl.store(vectors + c, mean, mask=existing)
    tl.store(vectors + C + c, variance, mask=existing)
    if weight is not None:
        scale = tl.load(weight + c, mask=existing, other=0.0) / tl.sqrt(variance + eps)
        shift = tl.load(bias + c, mask=existing, other=0.0) - mean * scale
        tl.store(vectors + 2 * C + c, scale, mask=existing)
        tl.store(vectors + 3 * C + c, shift, mask=existing)
    if running_mean is not None:
        _move(running_mean + c, mean, momentum, existing)
        _move(running_variance + c, variance * (M / tl.maximum(M - 1, 1)), momentum, existing)
        if tl.program_id(0) == 0:
            tl.store(batches, tl.load(batches) + 1)


@triton.jit
def _move(place, target, momentum, existing):
    before = tl.load(place, mask=existing, other=0.0).to(tl.float32)
    after = (1 - momentum) * before + momentum * target
    tl.store(place, after.to(place.dtype.element_ty), mask=existing)
