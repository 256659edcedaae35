"""Triton kernels of forward and input gradient: gather blocks of the source, multiply, sum.

    dst[position, o-block] = sum over active blocks of src[shifted position, c-block] @ values[slot]

The input gradient is the same with the lists by input block and values transposed. A position is
an output pixel of an image; a tap of the kernel shifts it by whole pixels. A residual may be added
to what is stored: to the output, or to the gradient of x another one of it. What else is done to
the source as it is loaded, and to the sums: see fusion_kernels.py. bias, x, residual, scale, shift
and partial are None in variants that do not use them.

Legend: BM positions a tile, BK channels a step of the sum, BLOCK_RED x BLOCK_DST the block as this
pass sees it (summed x written), TILE_DST the power of two that holds BLOCK_DST, HS WS source image,
HD WD written image, N images.
"""

import triton
import triton.language as tl

from sparse_kernels.triton.fusion_kernels import finished_gradient, finished_output, transformed


@triton.jit
def source_pixel(h, w, r, s, HS, WS, GEOMETRY: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Return where tap (r, s) of written pixel (h, w) reads, and whether that is inside.

    GEOMETRY is (stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w).
    """
    STRIDE_H: tl.constexpr = GEOMETRY[0]
    STRIDE_W: tl.constexpr = GEOMETRY[1]
    PAD_H: tl.constexpr = GEOMETRY[2]
    PAD_W: tl.constexpr = GEOMETRY[3]
    DIL_H: tl.constexpr = GEOMETRY[4]
    DIL_W: tl.constexpr = GEOMETRY[5]
    if TRANSPOSED:
        h = h + PAD_H - r * DIL_H
        w = w + PAD_W - s * DIL_W
        inside = (h >= 0) & (w >= 0) & (h % STRIDE_H == 0) & (w % STRIDE_W == 0)
        h = h // STRIDE_H
        w = w // STRIDE_W
    else:
        h = h * STRIDE_H - PAD_H + r * DIL_H
        w = w * STRIDE_W - PAD_W + s * DIL_W
        inside = (h >= 0) & (w >= 0)
    return h, w, inside & (h < HS) & (w < WS)


@triton.jit
def split_position(position, N, H, W, HWNC: tl.constexpr):
    """Return image and pixel of a position; images run fastest in HWNC, slowest elsewhere."""
    if HWNC:
        n = position % N
        h = position // N // W
        w = position // N % W
    else:
        n = position // W // H
        h = position // W % H
        w = position % W
    return n, h, w


# Known sizes of one pixel would let the compiler keep all addresses in registers, which then spill.
@triton.jit(do_not_specialize=["POSITIONS", "HS", "WS", "HD", "WD", "BLOCKS"])
def gather_pointers(
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
    tap_w,
    POSITIONS,
    N,
    HS,
    WS,
    HD,
    WD,
    C_SRC,
    C_DST,
    BLOCKS,
    src_n,
    src_h,
    src_w,
    dst_n,
    dst_h,
    dst_w,
    GEOMETRY: tl.constexpr,
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
    """Any batch, HWNC or channels_last, by masked pointers; strides in elements, channels 1."""
    # Programs of one tile run next to each other, so that they share its source in L2.
    block = tl.program_id(0) % BLOCKS
    tile = tl.program_id(0) // BLOCKS
    position = tile * BM + tl.arange(0, BM)
    real = position < POSITIONS
    n, hd, wd = split_position(position, N, HD, WD, HWNC)
    k = tl.arange(0, BK)
    d = tl.arange(0, TILE_DST)
    out = block * BLOCK_DST + d
    written = (out < C_DST) & (d < BLOCK_DST)
    acc = tl.zeros((BM, TILE_DST), tl.float32)
    PARTS: tl.constexpr = BLOCK_RED // BK
    for i in range(tl.load(start + block) * PARTS, tl.load(start + block + 1) * PARTS):
        entry = i // PARTS
        part = i % PARTS * BK
        r = tl.load(tap_h + entry)
        s = tl.load(tap_w + entry)
        h, w, inside = source_pixel(hd, wd, r, s, HS, WS, GEOMETRY, TRANSPOSED)
        c = tl.load(reduce + entry) * BLOCK_RED + part + k
        mask = (inside & real)[:, None]
        if RAGGED:
            mask = mask & (c < C_SRC)[None, :]
        offset = n.to(tl.int64) * src_n + h.to(tl.int64) * src_h + w.to(tl.int64) * src_w
        a = tl.load(src + offset[:, None] + c[None, :], mask=mask, other=0.0)
        if not TRANSPOSED and INPUT != "plain":
            a = transformed(a, scale, shift, c, C_SRC, mask, INPUT)
        base = values + tl.load(slot + entry).to(tl.int64) * (BLOCK_RED * BLOCK_DST)
        if TRANSPOSED:
            place = base + d[None, :] * BLOCK_RED + (part + k)[:, None]
        else:
            place = base + (part + k)[:, None] * BLOCK_DST + d[None, :]
        if TILE_DST == BLOCK_DST:
            weight = tl.load(place)
        else:
            weight = tl.load(place, mask=(d < BLOCK_DST)[None, :], other=0.0)
        acc = tl.dot(a, weight, acc, input_precision=PRECISION)
    mask = real[:, None]
    if RAGGED:
        mask = mask & written[None, :]
    offset = n.to(tl.int64) * dst_n + hd.to(tl.int64) * dst_h + wd.to(tl.int64) * dst_w
    place = offset[:, None] + out[None, :]
    # The layer's input lies as its gradient does, and what is added as the result.
    if TRANSPOSED:
        if INPUT != "plain":
            origin = tl.load(x + place, mask=mask, other=0.0)
            acc = finished_gradient(
                acc, origin, scale, shift, partial, tile, out, written, real[:, None], C_DST, INPUT
            )
        # Loaded this late, it needs no registers beside those of x.
        if residual is not None:
            acc += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    else:
        if residual is not None:
            acc += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(POSITIONS - tile * BM, BM)
        dtype: tl.constexpr = dst.dtype.element_ty
        acc = finished_output(
            acc, bias, partial, tile, out, written, real[:, None], count, C_DST, dtype
        )
    tl.store(dst + place, acc.to(dst.dtype.element_ty), mask=mask)


@triton.jit
def gather_tma(
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
    tap_w,
    N,
    HS,
    WS,
    WD,
    C_SRC,
    C_DST,
    BLOCKS,
    GEOMETRY: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    INPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BLOCK_RED: tl.constexpr,
    BLOCK_DST: tl.constexpr,
):
    """HWNC only, N a multiple of BM: a tile is one pixel x BM images, moved by TMA.

    A tap then shifts the whole tile by a number of pixels, and a tap outside the image reads past
    the last one, which TMA fills with zeros. src, values and what lies as dst are 2-D
    descriptors.
    """
    block = tl.program_id(0) % BLOCKS
    tile = tl.program_id(0) // BLOCKS
    chunks = N // BM
    pixel = tile // chunks
    n0 = tile % chunks * BM
    acc = tl.zeros((BM, BLOCK_DST), tl.float32)
    PARTS: tl.constexpr = BLOCK_RED // BK
    for i in range(tl.load(start + block) * PARTS, tl.load(start + block + 1) * PARTS):
        entry = i // PARTS
        part = i % PARTS * BK
        r = tl.load(tap_h + entry)
        s = tl.load(tap_w + entry)
        h, w, inside = source_pixel(pixel // WD, pixel % WD, r, s, HS, WS, GEOMETRY, TRANSPOSED)
        position = tl.where(inside, (h * WS + w) * N + n0, HS * WS * N)
        c = tl.load(reduce + entry) * BLOCK_RED + part
        a = src.load([position, c])
        if not TRANSPOSED and INPUT != "plain":
            a = transformed(a, scale, shift, c + tl.arange(0, BK), C_SRC, inside, INPUT)
        place = tl.load(slot + entry)
        if TRANSPOSED:
            weight = values.load([place * BLOCK_DST, part]).T
        else:
            weight = values.load([place * BLOCK_RED + part, 0])
        acc = tl.dot(a, weight, acc, input_precision=PRECISION)
    out = block * BLOCK_DST + tl.arange(0, BLOCK_DST)
    corner = [pixel * N + n0, block * BLOCK_DST]
    written = out < C_DST
    if TRANSPOSED:
        if INPUT != "plain":
            acc = finished_gradient(
                acc, x.load(corner), scale, shift, partial, tile, out, written, True, C_DST, INPUT
            )
        if residual is not None:
            acc += residual.load(corner).to(tl.float32)
    else:
        if residual is not None:
            acc += residual.load(corner).to(tl.float32)
        acc = finished_output(acc, bias, partial, tile, out, written, True, BM, C_DST, dst.dtype)
    dst.store(corner, acc.to(dst.dtype))
