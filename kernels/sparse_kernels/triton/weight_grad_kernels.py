"""Triton kernels of the weight gradient: one program per active block and share of the positions.

    partial[split, slot] = sum over its positions of src[shifted position, c-block]^T @ dy[o-block]

Partial sums are fp32 and are added in a fixed order (sums_kernels.py): the result is the same at
every run. A single share is the gradient itself, and is written in its data type. Legend as in
gather_kernels.py; BC x BO is the block, TILE_C x TILE_O the powers of two that hold it.
"""

import triton
import triton.language as tl

from sparse_kernels.triton.fusion_kernels import transformed
from sparse_kernels.triton.gather_kernels import source_pixel, split_position


@triton.jit
def store_partial(
    acc,
    partial,
    split,
    slot,
    SLOTS,
    BC: tl.constexpr,
    BO: tl.constexpr,
    TILE_C: tl.constexpr,
    TILE_O: tl.constexpr,
):
    """Write one block of partial sums [SPLITS, SLOTS, BC, BO]."""
    base = partial + (split.to(tl.int64) * SLOTS + slot) * (BC * BO)
    c = tl.arange(0, TILE_C)[:, None]
    o = tl.arange(0, TILE_O)[None, :]
    tl.store(base + c * BO + o, acc.to(partial.dtype.element_ty), mask=(c < BC) & (o < BO))


# As in gather_pointers.
@triton.jit(do_not_specialize=["POSITIONS", "H", "W", "P", "Q", "OUT_BLOCKS", "SLOTS", "SPLITS"])
def weight_grad_pointers(
    x,
    dy,
    scale,
    shift,
    partial,
    out_block,
    in_block,
    tap_h,
    tap_w,
    POSITIONS,
    N,
    H,
    W,
    P,
    Q,
    C,
    C_OUT,
    OUT_BLOCKS,
    SLOTS,
    SPLITS,
    x_n,
    x_h,
    x_w,
    dy_n,
    dy_h,
    dy_w,
    GEOMETRY: tl.constexpr,
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
    """Any batch, HWNC or channels_last, by masked pointers; unused slots get zeros."""
    slot = tl.program_id(0) % SLOTS
    split = tl.program_id(0) // SLOTS
    o_block = tl.load(out_block + slot)
    r = tl.load(tap_h + slot)
    s = tl.load(tap_w + slot)
    o = o_block * BO + tl.arange(0, TILE_O)
    c = tl.load(in_block + slot) * BC + tl.arange(0, TILE_C)
    tiles = tl.where(o_block < OUT_BLOCKS, tl.cdiv(POSITIONS, BM), 0)
    acc = tl.zeros((TILE_C, TILE_O), tl.float32)
    for tile in range(split, tiles, SPLITS):
        position = tile * BM + tl.arange(0, BM)
        n, p, q = split_position(position, N, P, Q, HWNC)
        h, w, inside = source_pixel(p, q, r, s, H, W, GEOMETRY, False)
        # A position whose source is outside adds nothing, so its dy need not be read either.
        mask = (inside & (position < POSITIONS))[:, None]
        x_mask = mask
        dy_mask = mask
        if RAGGED:
            x_mask = mask & (c < C)[None, :]
            dy_mask = mask & (o < C_OUT)[None, :]
        x_offset = n.to(tl.int64) * x_n + h.to(tl.int64) * x_h + w.to(tl.int64) * x_w
        dy_offset = n.to(tl.int64) * dy_n + p.to(tl.int64) * dy_h + q.to(tl.int64) * dy_w
        a = tl.load(x + x_offset[:, None] + c[None, :], mask=x_mask, other=0.0)
        if INPUT != "plain":
            a = transformed(a, scale, shift, c, C, x_mask, INPUT)
        b = tl.load(dy + dy_offset[:, None] + o[None, :], mask=dy_mask, other=0.0)
        acc = tl.dot(a.T, b, acc, input_precision=PRECISION)
    store_partial(acc, partial, split, slot, SLOTS, BC, BO, TILE_C, TILE_O)


@triton.jit
def weight_grad_tma(
    x,
    dy,
    scale,
    shift,
    partial,
    out_block,
    in_block,
    tap_h,
    tap_w,
    N,
    H,
    W,
    P,
    Q,
    C,
    OUT_BLOCKS,
    SLOTS,
    SPLITS,
    GEOMETRY: tl.constexpr,
    INPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
):
    """HWNC only, N a multiple of BM: tiles of one pixel x BM images, moved by TMA."""
    slot = tl.program_id(0) % SLOTS
    split = tl.program_id(0) // SLOTS
    o_block = tl.load(out_block + slot)
    c = tl.load(in_block + slot) * BC
    r = tl.load(tap_h + slot)
    s = tl.load(tap_w + slot)
    chunks = N // BM
    tiles = tl.where(o_block < OUT_BLOCKS, P * Q * chunks, 0)
    acc = tl.zeros((BC, BO), tl.float32)
    for tile in range(split, tiles, SPLITS):
        pixel = tile // chunks
        n0 = tile % chunks * BM
        h, w, inside = source_pixel(pixel // Q, pixel % Q, r, s, H, W, GEOMETRY, False)
        position = tl.where(inside, (h * W + w) * N + n0, H * W * N)
        a = x.load([position, c])
        if INPUT != "plain":
            a = transformed(a, scale, shift, c + tl.arange(0, BC), C, inside, INPUT)
        b = dy.load([pixel * N + n0, o_block * BO])
        acc = tl.dot(a.T, b, acc, input_precision=PRECISION)
    store_partial(acc, partial, split, slot, SLOTS, BC, BO, BC, BO)
