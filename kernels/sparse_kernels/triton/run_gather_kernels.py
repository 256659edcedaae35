"""Triton kernels of forward and input gradient for strips: runs of pixels share what they load.

A strip is a pair of channel blocks in one row of the kernel; its S taps lie in S neighbouring
slots. A program writes P neighbouring pixels of an image's row, times BM: P + S - 1 tiles of the
source and S blocks of weights feed P * S products, where one tap at a time loads P * S of each.
Stride and dilation are 1. The last run of a row may reach past its end: what lies there is zero as
it is read, and is not written.

The lists are those of the strips: `slot` is a strip's number, whose slots begin at S times that.
They are int16 where they can be, which Triton's pipeliner leaves alone: of int32 lists it makes
asynchronous copies, at the price of a buffer. Legend as in gather_kernels.py.
"""

import triton
import triton.language as tl

from sparse_kernels.triton.fusion_kernels import finished_gradient, finished_output, transformed
from sparse_kernels.triton.gather_kernels import split_position


@triton.jit
def listed(place):
    """Return a number of a list, whose type may be int16."""
    return tl.load(place).to(tl.int32)


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return a tuple of sums [ROWS, COLUMNS], all zero."""
    sums = ()
    for _ in tl.static_range(COUNT):
        sums += (tl.zeros((ROWS, COLUMNS), tl.float32),)
    return sums


@triton.jit
def with_tile(sums, tile, weights, j: tl.constexpr, S: tl.constexpr, PRECISION: tl.constexpr):
    """Return a run's sums with tile j multiplied into those of the pixels that read it.

    Each tile is used up before the next one, so that its registers are free again.
    """
    added = ()
    for p in tl.static_range(len(sums)):
        if p <= j and j < p + S:
            acc = tl.dot(tile, weights[j - p], sums[p], input_precision=PRECISION)
            added += (acc,)
        else:
            added += (sums[p],)
    return added


@triton.jit
def source_corner(h, w, r, S: tl.constexpr, PADDING: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Return row and first column of what a run that starts at (h, w) reads for kernel row r."""
    PAD_H: tl.constexpr = PADDING[0]
    PAD_W: tl.constexpr = PADDING[1]
    if TRANSPOSED:
        return h + PAD_H - r, w + PAD_W - (S - 1)
    return h - PAD_H + r, w - PAD_W


@triton.jit(do_not_specialize=["UNITS", "HS", "WS", "HD", "WD", "BLOCKS", "RUNS"])
def run_gather_pointers(
    src,
    values,
    bias,
    dst,
    x,
    residual,
    scale,
    shift,
    partial,
    start,
    slot,
    reduce,
    tap_h,
    UNITS,
    N,
    HS,
    WS,
    HD,
    WD,
    RUNS,
    C_SRC,
    C_DST,
    BLOCKS,
    src_n,
    src_h,
    src_w,
    dst_n,
    dst_h,
    dst_w,
    P: tl.constexpr,
    S: tl.constexpr,
    PADDING: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HWNC: tl.constexpr,
    INPUT: tl.constexpr,
    RAGGED: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BLOCK_RED: tl.constexpr,
    BLOCK_DST: tl.constexpr,
    TILE_DST: tl.constexpr,
):
    """Any batch and order, by masked pointers: BM of the UNITS = N * HD * RUNS runs a program."""
    block = tl.program_id(0) % BLOCKS
    tile = tl.program_id(0) // BLOCKS
    unit = tile * BM + tl.arange(0, BM)
    real = unit < UNITS
    n, hd, run = split_position(unit, N, HD, RUNS, HWNC)
    wd = run * P
    k = tl.arange(0, BK)
    d = tl.arange(0, TILE_DST)
    out = block * BLOCK_DST + d
    written = (out < C_DST) & (d < BLOCK_DST)
    sums = zeros(P, BM, TILE_DST)
    PARTS: tl.constexpr = BLOCK_RED // BK
    for i in range(listed(start + block) * PARTS, listed(start + block + 1) * PARTS):
        entry = i // PARTS
        part = i % PARTS * BK
        h, left = source_corner(hd, wd, listed(tap_h + entry), S, PADDING, TRANSPOSED)
        c = listed(reduce + entry) * BLOCK_RED + part + k
        base = values + listed(slot + entry).to(tl.int64) * (S * BLOCK_RED * BLOCK_DST)
        weights = ()
        for s in tl.static_range(S):
            if TRANSPOSED:
                place = base + (S - 1 - s) * (BLOCK_RED * BLOCK_DST)
                place = place + d[None, :] * BLOCK_RED + (part + k)[:, None]
            else:
                place = base + s * (BLOCK_RED * BLOCK_DST)
                place = place + (part + k)[:, None] * BLOCK_DST + d[None, :]
            if TILE_DST == BLOCK_DST:
                weight = tl.load(place)
            else:
                weight = tl.load(place, mask=(d < BLOCK_DST)[None, :], other=0.0)
            weights += (weight,)
        inside_h = real & (h >= 0) & (h < HS)
        offset = n.to(tl.int64) * src_n + h.to(tl.int64) * src_h + left.to(tl.int64) * src_w
        for j in tl.static_range(P + S - 1):
            mask = (inside_h & (left + j >= 0) & (left + j < WS))[:, None]
            if RAGGED:
                mask = mask & (c < C_SRC)[None, :]
            a = tl.load(src + (offset + j * src_w)[:, None] + c[None, :], mask=mask, other=0.0)
            if not TRANSPOSED and INPUT != "plain":
                a = transformed(a, scale, shift, c, C_SRC, mask, INPUT)
            sums = with_tile(sums, a, weights, j, S, PRECISION)
    offset = n.to(tl.int64) * dst_n + hd.to(tl.int64) * dst_h + wd.to(tl.int64) * dst_w
    for p in tl.static_range(P):
        acc = sums[p]
        exists = (real & (wd + p < WD))[:, None]
        mask = exists
        if RAGGED:
            mask = mask & written[None, :]
        place = (offset + p * dst_w)[:, None] + out[None, :]
        if TRANSPOSED:
            if INPUT != "plain":
                origin = tl.load(x + place, mask=mask, other=0.0)
                acc = finished_gradient(
                    acc,
                    origin,
                    scale,
                    shift,
                    partial,
                    tile * P + p,
                    out,
                    written,
                    exists,
                    C_DST,
                    INPUT,
                )
            if residual is not None:
                acc += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
        else:
            if residual is not None:
                acc += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
            acc = finished_output(
                acc,
                bias,
                partial,
                tile * P + p,
                out,
                written,
                exists,
                BM,
                C_DST,
                dst.dtype.element_ty,
            )
        tl.store(dst + place, acc.to(dst.dtype.element_ty), mask=mask)


@triton.jit
def run_gather_tma(
    src,
    values,
    bias,
    dst,
    x,
    residual,
    scale,
    shift,
    partial,
    start,
    slot,
    reduce,
    tap_h,
    N,
    HS,
    WS,
    HD,
    WD,
    RUNS,
    C_SRC,
    C_DST,
    BLOCKS,
    P: tl.constexpr,
    S: tl.constexpr,
    PADDING: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    INPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BLOCK_RED: tl.constexpr,
    BLOCK_DST: tl.constexpr,
):
    """HWNC only, N a multiple of BM: a program writes one run of pixels of BM images, by TMA.

    What lies outside an image reads, and would be written, past the last pixel: TMA fills it with
    zeros, and leaves it out. src, values and what lies as dst are 2-D descriptors.
    """
    block = tl.program_id(0) % BLOCKS
    tile = tl.program_id(0) // BLOCKS
    chunks = N // BM
    n0 = tile % chunks * BM
    hd = tile // chunks // RUNS
    wd = tile // chunks % RUNS * P
    sums = zeros(P, BM, BLOCK_DST)
    PARTS: tl.constexpr = BLOCK_RED // BK
    for i in range(listed(start + block) * PARTS, listed(start + block + 1) * PARTS):
        entry = i // PARTS
        part = i % PARTS * BK
        h, left = source_corner(hd, wd, listed(tap_h + entry), S, PADDING, TRANSPOSED)
        c = listed(reduce + entry) * BLOCK_RED + part
        place = listed(slot + entry) * S
        weights = ()
        for s in tl.static_range(S):
            if TRANSPOSED:
                weight = values.load([(place + S - 1 - s) * BLOCK_DST, part]).T
            else:
                weight = values.load([(place + s) * BLOCK_RED + part, 0])
            weights += (weight,)
        for j in tl.static_range(P + S - 1):
            inside = (h >= 0) & (h < HS) & (left + j >= 0) & (left + j < WS)
            position = tl.where(inside, (h * WS + left + j) * N + n0, HS * WS * N)
            a = src.load([position, c])
            if not TRANSPOSED and INPUT != "plain":
                a = transformed(a, scale, shift, c + tl.arange(0, BK), C_SRC, inside, INPUT)
            sums = with_tile(sums, a, weights, j, S, PRECISION)
    out = block * BLOCK_DST + tl.arange(0, BLOCK_DST)
    written = out < C_DST
    for p in tl.static_range(P):
        acc = sums[p]
        exists = wd + p < WD
        row = tl.where(exists, (hd * WD + wd + p) * N + n0, HD * WD * N)
        corner = [row, block * BLOCK_DST]
        if TRANSPOSED:
            if INPUT != "plain":
                acc = finished_gradient(
                    acc,
                    x.load(corner),
                    scale,
                    shift,
                    partial,
                    tile * P + p,
                    out,
                    written,
                    exists,
                    C_DST,
                    INPUT,
                )
            if residual is not None:
                acc += residual.load(corner).to(tl.float32)
        else:
            if residual is not None:
                acc += residual.load(corner).to(tl.float32)
            acc = finished_output(
                acc, bias, partial, tile * P + p, out, written, exists, BM, C_DST, dst.dtype
            )
        dst.store(corner, acc.to(dst.dtype))
