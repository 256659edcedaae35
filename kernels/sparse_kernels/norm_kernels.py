"""Triton kernels of batch norm: what no pass of a convolution does, in one pass over memory each.

Images are matrices [M, C] of positions and channels, in rows or channels_last order: `tile_sums`
and `tile_gradients` read them and write two sums by tile and channel, [tiles, 2, C]; `normalised`
and `normalised_grad` read and write them. The other kernels handle vectors [C].

Legend: BM x BC a program's positions x channels; SUMS tiles a step of `joined`.
"""

import triton
import triton.language as tl


@triton.jit
def tile_sums(x, partial, M, C, BM: tl.constexpr, BC: tl.constexpr):
    """Write mean and sum of squared deviations of x by tile."""
    c, mask, place = _tile(M, C, BM, BC)
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, 0) / tl.minimum(M - tl.program_id(0) * BM, BM)
    deviation = tl.where(mask, values - mean[None, :], 0.0)
    _store_sums(partial, c, C, mean, tl.sum(deviation * deviation, 0))


@triton.jit
def tile_gradients(
    grad,
    x,
    out,
    scale,
    shift,
    partial,
    M,
    C,
    RELU: tl.constexpr,
    HAS_OUT: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """Write the sums of g and g * x by tile, where g is the gradient before the ReLU."""
    c, mask, place = _tile(M, C, BM, BC)
    g = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        g = _before_relu(g, values, out + place, scale, shift, c, C, mask, HAS_OUT)
    _store_sums(partial, c, C, tl.sum(g, 0), tl.sum(g * values, 0))


@triton.jit
def joined(partial, mean, variance, M, C, SIZE, TILES, SUMS: tl.constexpr, BC: tl.constexpr):
    """Join the tiles' means and squared deviations; SIZE positions each, but for the last one.

    Squares are taken around the first tile's mean, so that a large mean cancels nothing.
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
        second += tl.sum(off * off * count + tl.load(place + C, mask=mask, other=0.0), 0)
    off = first / M
    tl.store(mean + c, pivot + off, mask=existing)
    tl.store(variance + c, tl.maximum(second / M - off * off, 0.0), mask=existing)


@triton.jit
def affine(mean, variance, weight, bias, scale, shift, C, eps, BC: tl.constexpr):
    """Write batch norm as scale * x + shift."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    existing = c < C
    spread = tl.sqrt(_channels(variance, c, existing) + eps)
    a = _channels(weight, c, existing) / spread
    tl.store(scale + c, a, mask=existing)
    b = _channels(bias, c, existing) - _channels(mean, c, existing) * a
    tl.store(shift + c, b, mask=existing)


@triton.jit
def normalised(
    x,
    residual,
    scale,
    shift,
    out,
    M,
    C,
    RELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """Write scale * x + shift, plus a residual, or the positive part of it."""
    c, mask, place = _tile(M, C, BM, BC)
    y = _affine(tl.load(x + place, mask=mask, other=0.0), scale, shift, c, C)
    if HAS_RESIDUAL:
        y += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        y = tl.where(y < 0, 0.0, y)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def normalised_grad(
    grad,
    x,
    out,
    other,
    sums,
    mean,
    variance,
    weight,
    scale,
    shift,
    dx,
    dresidual,
    dweight,
    dbias,
    M,
    C,
    eps,
    SCALED: tl.constexpr,
    RELU: tl.constexpr,
    HAS_OUT: tl.constexpr,
    BATCH: tl.constexpr,
    HAS_OTHER: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """Write the gradients of a batch norm from that of its output and its sums [2, C].

    SCALED: grad is past ReLU and scale already, as the input-gradient pass leaves it. BATCH: mean
    and variance are those of x. HAS_OTHER: `other` is another gradient of x, which is added.
    RESIDUAL: the gradient before scale is that of a residual, and is written too.
    """
    c, mask, place = _tile(M, C, BM, BC)
    existing = c < C
    g = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        g = _before_relu(g, values, out + place, scale, shift, c, C, mask, HAS_OUT)
    if RESIDUAL:
        tl.store(dresidual + place, g.to(dresidual.dtype.element_ty), mask=mask)
    sum_g = _channels(sums, c, existing)
    center = _channels(mean, c, existing)
    steepness = 1 / tl.sqrt(_channels(variance, c, existing) + eps)
    sum_gx = (_channels(sums + C, c, existing) - center * sum_g) * steepness
    a = _channels(weight, c, existing) * steepness
    if not SCALED:
        g *= a[None, :]
    if BATCH:
        slope = a * steepness * sum_gx / M
        g -= (values - center[None, :]) * slope[None, :] + (a * sum_g / M)[None, :]
    if HAS_OTHER:
        g += tl.load(other + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + place, g.to(dx.dtype.element_ty), mask=mask)
    if tl.program_id(0) == 0:
        tl.store(dweight + c, sum_gx.to(dweight.dtype.element_ty), mask=existing)
        tl.store(dbias + c, sum_g.to(dbias.dtype.element_ty), mask=existing)


@triton.jit
def _tile(M, C, BM: tl.constexpr, BC: tl.constexpr):
    """Return the channels of a program's tile, what exists of it, and its offsets."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (row < M)[:, None] & (c < C)[None, :]
    return c, mask, row.to(tl.int64)[:, None] * C + c[None, :]


@triton.jit
def _channels(vector, c, existing):
    return tl.load(vector + c, mask=existing, other=0.0).to(tl.float32)


@triton.jit
def _affine(x, scale, shift, c, C):
    a = _channels(scale, c, c < C)
    b = _channels(shift, c, c < C)
    return x.to(tl.float32) * a[None, :] + b[None, :]


@triton.jit
def _before_relu(g, x, out, scale, shift, c, C, mask, HAS_OUT: tl.constexpr):
    """Return g where the ReLU's input was positive: by its output, or from x."""
    y = tl.load(out, mask=mask, other=0.0) if HAS_OUT else _affine(x, scale, shift, c, C)
    return tl.where(y > 0, g, 0.0)


@triton.jit
def _store_sums(partial, c, C, first, second):
    sums = partial + tl.program_id(0).to(tl.int64) * 2 * C + c
    tl.store(sums, first, mask=c < C)
    tl.store(sums + C, second, mask=c < C)
