"""Triton kernels of the weight gradient of strips: a program per group of them and share of runs.

As in run_gather_kernels.py a run is P neighbouring pixels of dy: they and P + TAPS - 1 tiles of x
feed P * TAPS products, where one tap at a time loads twice as many tiles as it multiplies. A
program adds up TAPS of a strip's S taps, all of them unless their sums do not fit the registers.

A group is up to G strips of one output block, which share the tiles of dy. A group that is not
full multiplies zeros for the strips that it lacks, reads nothing for them and writes nothing. The
lists are those of the strips by output block, as of the forward pass; the number of groups is not
known before they are read, so there may be programs without any strip.

Partial sums, and the rest of the legend, as in weight_grad_kernels.py.
"""

import triton
import triton.language as tl

from sparse_kernels.triton.fusion_kernels import transformed
from sparse_kernels.triton.gather_kernels import split_position
from sparse_kernels.triton.run_gather_kernels import listed, with_tile, zeros
from sparse_kernels.triton.weight_grad_kernels import store_partial


@triton.jit
def group_of(start, group, STRIPS, OUT_BLOCKS, G: tl.constexpr, BLOCKS: tl.constexpr):
    """Return a group's output block, its first place in the lists, and where that block's end.

    Unused strips come last, as those of one output block more. BLOCKS: more than OUT_BLOCKS.
    """
    block = tl.arange(0, BLOCKS)
    first = tl.load(start + block, mask=block <= OUT_BLOCKS, other=STRIPS).to(tl.int32)
    end = tl.load(start + block + 1, mask=block < OUT_BLOCKS, other=STRIPS).to(tl.int32)
    groups = tl.cdiv(end - first, G)
    before = tl.cumsum(groups, 0) <= group
    place = tl.max(tl.where(before, end, 0), 0)
    place += (group - tl.sum(tl.where(before, groups, 0), 0)) * G
    return tl.sum(before.to(tl.int32), 0), place, tl.min(tl.where(before, STRIPS, end), 0)


@triton.jit
def strips_of(reduce, tap_h, place, end, OUTSIDE, G: tl.constexpr, BC: tl.constexpr):
    """Return first channel and kernel row of each strip of a group; rows OUTSIDE it if absent."""
    channels = ()
    rows = ()
    for g in tl.static_range(G):
        present = place + g < end
        channels += (tl.load(reduce + place + g, mask=present, other=0).to(tl.int32) * BC,)
        row = tl.load(tap_h + place + g, mask=present, other=0).to(tl.int32)
        rows += (tl.where(present, row, OUTSIDE),)
    return channels, rows


@triton.jit
def store_strips(
    sums,
    partial,
    split,
    slot,
    place,
    end,
    tap,
    STRIPS,
    S: tl.constexpr,
    TAPS: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
    TILE_C: tl.constexpr,
    TILE_O: tl.constexpr,
):
    """Write the sums of a group's taps from `tap` on, those that there are."""
    for g in tl.static_range(len(sums) // TAPS):
        if place + g < end:
            strip = listed(slot + place + g)
            for t in tl.static_range(TAPS):
                if tap + t < S:
                    acc = sums[g * TAPS + t]
                    of = strip * S + tap + t
                    store_partial(acc, partial, split, of, STRIPS * S, BC, BO, TILE_C, TILE_O)


@triton.jit(
    do_not_specialize=[
        *("UNITS", "H", "W", "HD", "WD", "RUNS", "OUT_BLOCKS", "STRIPS", "GROUPS", "SPLITS")
    ]
)
def run_weight_grad_pointers(
    x,
    dy,
    scale,
    shift,
    partial,
    start,
    slot,
    reduce,
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
    GROUPS,
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
    G: tl.constexpr,
    BLOCKS: tl.constexpr,
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
    group = tl.program_id(0) % GROUPS
    PARTS: tl.constexpr = (S + TAPS - 1) // TAPS
    tap = tl.program_id(0) // GROUPS % PARTS * TAPS
    split = tl.program_id(0) // GROUPS // PARTS
    o_block, place, end = group_of(start, group, STRIPS, OUT_BLOCKS, G, BLOCKS)
    channels, rows = strips_of(reduce, tap_h, place, end, H + PADDING[0], G, BC)
    o = o_block * BO + tl.arange(0, TILE_O)
    steps = tl.where(o_block < OUT_BLOCKS, tl.cdiv(UNITS, BM), 0)
    sums = zeros(G * TAPS, TILE_C, TILE_O)
    for step in range(split, steps, SPLITS):
        unit = step * BM + tl.arange(0, BM)
        n, hd, run = split_position(unit, N, HD, RUNS, HWNC)
        wd = run * P
        left = wd - PADDING[1] + tap
        real = unit < UNITS
        y_offset = n.to(tl.int64) * dy_n + hd.to(tl.int64) * dy_h + wd.to(tl.int64) * dy_w
        y = ()
        added = ()
        for g in tl.static_range(G):
            c = channels[g] + tl.arange(0, TILE_C)
            h = hd - PADDING[0] + rows[g]
            inside_h = real & (h >= 0) & (h < H)
            # A run whose source is outside adds nothing, so its dy need not be read either.
            wanted = inside_h if G == 1 else real
            x_offset = n.to(tl.int64) * x_n + h.to(tl.int64) * x_h + left.to(tl.int64) * x_w
            of_strip = sums[g * TAPS : (g + 1) * TAPS]
            for j in tl.static_range(P + TAPS - 1):
                if g == 0 and j < P:
                    mask = (wanted & (wd + j < WD))[:, None]
                    if RAGGED:
                        mask = mask & (o < C_OUT)[None, :]
                    source = dy + (y_offset + j * dy_w)[:, None] + o[None, :]
                    y += (tl.load(source, mask=mask, other=0.0),)
                mask = (inside_h & (left + j >= 0) & (left + j < W))[:, None]
                if RAGGED:
                    mask = mask & (c < C)[None, :]
                a = tl.load(x + (x_offset + j * x_w)[:, None] + c[None, :], mask=mask, other=0.0)
                if INPUT != "plain":
                    a = transformed(a, scale, shift, c, C, mask, INPUT)
                of_strip = with_tile(of_strip, a.T, y, j, P, PRECISION)
            added += of_strip
        sums = added
    store_strips(
        sums, partial, split, slot, place, end, tap, STRIPS, S, TAPS, BC, BO, TILE_C, TILE_O
    )


@triton.jit
def run_weight_grad_tma(
    x,
    dy,
    scale,
    shift,
    partial,
    start,
    slot,
    reduce,
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
    GROUPS,
    SPLITS,
    P: tl.constexpr,
    S: tl.constexpr,
    TAPS: tl.constexpr,
    G: tl.constexpr,
    BLOCKS: tl.constexpr,
    PADDING: tl.constexpr,
    INPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
):
    """HWNC only, N a multiple of BM: tiles of one pixel x BM images, moved by TMA."""
    group = tl.program_id(0) % GROUPS
    PARTS: tl.constexpr = (S + TAPS - 1) // TAPS
    tap = tl.program_id(0) // GROUPS % PARTS * TAPS
    split = tl.program_id(0) // GROUPS // PARTS
    o_block, place, end = group_of(start, group, STRIPS, OUT_BLOCKS, G, BLOCKS)
    channels, rows = strips_of(reduce, tap_h, place, end, H + PADDING[0], G, BC)
    chunks = N // BM
    steps = tl.where(o_block < OUT_BLOCKS, HD * RUNS * chunks, 0)
    sums = zeros(G * TAPS, BC, BO)
    for step in range(split, steps, SPLITS):
        n0 = step % chunks * BM
        hd = step // chunks // RUNS
        wd = step // chunks % RUNS * P
        left = wd - PADDING[1] + tap
        y = ()
        added = ()
        for g in tl.static_range(G):
            c = channels[g]
            h = hd - PADDING[0] + rows[g]
            of_strip = sums[g * TAPS : (g + 1) * TAPS]
            for j in tl.static_range(P + TAPS - 1):
                if g == 0 and j < P:
                    row = tl.where(wd + j < WD, (hd * WD + wd + j) * N + n0, HD * WD * N)
                    y += (dy.load([row, o_block * BO]),)
                inside = (h >= 0) & (h < H) & (left + j >= 0) & (left + j < W)
                a = x.load([tl.where(inside, (h * W + left + j) * N + n0, H * W * N), c])
                if INPUT != "plain":
                    a = transformed(a, scale, shift, c + tl.arange(0, BC), C, inside, INPUT)
                of_strip = with_tile(of_strip, a.T, y, j, P, PRECISION)
            added += of_strip
        sums = added
    store_strips(sums, partial, split, slot, place, end, tap, STRIPS, S, TAPS, BC, BO, BC, BO)
