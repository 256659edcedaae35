"""Triton kernels of the weight gradient of strips: one program per strip and share of the runs.

As in run_gather_kernels.py a run is P neighbouring pixels of dy: they and P + TAPS - 1 tiles of x
feed P * TAPS products, where one tap at a time loads twice as many tiles as it multiplies. A
program adds up TAPS of a strip's S taps, all of them unless their sums do not fit the registers.
Partial sums, and the rest of the legend, as in weight_grad_kernels.py.
"""

import triton
import triton.language as tl

from sparse_kernels.triton.fusion_kernels import transformed
from sparse_kernels.triton.gather_kernels import split_position
from sparse_kernels.triton.run_gather_kernels import listed, with_tile, zeros
from sparse_kernels.triton.weight_grad_kernels import store_partial


@triton.jit
def store_strip(
    sums,
    partial,
    split,
    strip,
    tap,
    STRIPS,
    S: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
    TILE_C: tl.constexpr,
    TILE_O: tl.constexpr,
):
    """Write the sums of a strip's taps from `tap` on, those that there are."""
    for t in tl.static_range(len(sums)):
        if tap + t < S:
            slot = strip * S + tap + t
            store_partial(sums[t], partial, split, slot, STRIPS * S, BC, BO, TILE_C, TILE_O)


@triton.jit(
    do_not_specialize=["UNITS", "H", "W", "HD", "WD", "RUNS", "OUT_BLOCKS", "STRIPS", "SPLITS"]
)
def run_weight_grad_pointers(
    x,
    dy,
    scale,
    shift,
    partial,
    out_block,
    in_block,
    tap_h,
    UNITS,
    N,
    H,
    W,
    HD,
    WD,
    RUNS,
    C,
    C_OUT,
    OUT_BLOCKS,
    STRIPS,
    SPLITS,
    x_n,
    x_h,
    x_w,
    dy_n,
    dy_h,
    dy_w,
    P: tl.constexpr,
    S: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    HWNC: tl.constexpr,
    RAGGED: tl.constexpr,
    INPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
    TILE_C: tl.constexpr,
    TILE_O: tl.constexpr,
):
    """Any batch and order, by masked pointers: tiles are BM of the UNITS = N * HD * RUNS runs."""
    strip = tl.program_id(0) % STRIPS
    PARTS: tl.constexpr = (S + TAPS - 1) // TAPS
    tap = tl.program_id(0) // STRIPS % PARTS * TAPS
    split = tl.program_id(0) // STRIPS // PARTS
    o_block = listed(out_block + strip)
    r = listed(tap_h + strip)
    o = o_block * BO + tl.arange(0, TILE_O)
    c = listed(in_block + strip) * BC + tl.arange(0, TILE_C)
    steps = tl.where(o_block < OUT_BLOCKS, tl.cdiv(UNITS, BM), 0)
    sums = zeros(TAPS, TILE_C, TILE_O)
    for step in range(split, steps, SPLITS):
        unit = step * BM + tl.arange(0, BM)
        n, hd, run = split_position(unit, N, HD, RUNS, HWNC)
        wd = run * P
        h = hd - PADDING[0] + r
        left = wd - PADDING[1] + tap
        # A run whose source is outside adds nothing, so its dy need not be read either.
        inside_h = (unit < UNITS) & (h >= 0) & (h < H)
        y_offset = n.to(tl.int64) * dy_n + hd.to(tl.int64) * dy_h + wd.to(tl.int64) * dy_w
        y = ()
        x_offset = n.to(tl.int64) * x_n + h.to(tl.int64) * x_h + left.to(tl.int64) * x_w
        for j in tl.static_range(P + TAPS - 1):
            if j < P:
                mask = (inside_h & (wd + j < WD))[:, None]
                if RAGGED:
                    mask = mask & (o < C_OUT)[None, :]
                place = dy + (y_offset + j * dy_w)[:, None] + o[None, :]
                y += (tl.load(place, mask=mask, other=0.0),)
            mask = (inside_h & (left + j >= 0) & (left + j < W))[:, None]
            if RAGGED:
                mask = mask & (c < C)[None, :]
            a = tl.load(x + (x_offset + j * x_w)[:, None] + c[None, :], mask=mask, other=0.0)
            if INPUT != "plain":
                a = transformed(a, scale, shift, c, C, mask, INPUT)
            sums = with_tile(sums, a.T, y, j, P, PRECISION)
    store_strip(sums, partial, split, strip, tap, STRIPS, S, BC, BO, TILE_C, TILE_O)


@triton.jit
def run_weight_grad_tma(
    x,
    dy,
    scale,
    shift,
    partial,
    out_block,
    in_block,
    tap_h,
    N,
    H,
    W,
    HD,
    WD,
    RUNS,
    C,
    OUT_BLOCKS,
    STRIPS,
    SPLITS,
    P: tl.constexpr,
    S: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    INPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
):
    """HWNC only, N a multiple of BM: tiles of one pixel x BM images, moved by TMA."""
    strip = tl.program_id(0) % STRIPS
    PARTS: tl.constexpr = (S + TAPS - 1) // TAPS
    tap = tl.program_id(0) // STRIPS % PARTS * TAPS
    split = tl.program_id(0) // STRIPS // PARTS
    o_block = listed(out_block + strip)
    c = listed(in_block + strip) * BC
    r = listed(tap_h + strip)
    chunks = N // BM
    steps = tl.where(o_block < OUT_BLOCKS, HD * RUNS * chunks, 0)
    sums = zeros(TAPS, BC, BO)
    for step in range(split, steps, SPLITS):
        n0 = step % chunks * BM
        hd = step // chunks // RUNS
        wd = step // chunks % RUNS * P
        h = hd - PADDING[0] + r
        left = wd - PADDING[1] + tap
        y = ()
        for j in tl.static_range(P + TAPS - 1):
            if j < P:
                row = tl.where(wd + j < WD, (hd * WD + wd + j) * N + n0, HD * WD * N)
                y += (dy.load([row, o_block * BO]),)
            inside = (h >= 0) & (h < H) & (left + j >= 0) & (left + j < W)
            a = x.load([tl.where(inside, (h * W + left + j) * N + n0, H * W * N), c])
            if INPUT != "plain":
                a = transformed(a, scale, shift, c + tl.arange(0, BC), C, inside, INPUT)
            sums = with_tile(sums, a.T, y, j, P, PRECISION)
    store_strip(sums, partial, split, strip, tap, STRIPS, S, BC, BO, BC, BO)
