"""Triton kernels of batch norm: what no pass of a convolution does, in one pass over memory each.

Images are matrices [M, C] of positions and channels, in HWNC or channels_last order: `tile_sums`
and `tile_gradients` read them and write two sums by tile and channel, [tiles, 2, C], which
sums_kernels.py puts together; `normalised` and `normalised_grad` read and write them; `affine`
handles vectors [C].

Legend: BM x BC a program's positions x channels.
"""

import triton
import triton.language as tl

from sparse_kernels.triton.fusion_kernels import scaled, store_sums


@triton.jit
def tile_sums(x, partial, M, C, BM: tl.constexpr, BC: tl.constexpr):
    """Write mean and variance of x by tile."""
    c, mask, place = _tile(M, C, BM, BC)
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    count = tl.minimum(M - tl.program_id(0) * BM, BM)
    mean = tl.sum(values, 0) / count
    deviation = tl.where(mask, values - mean[None, :], 0.0)
    store_sums(
        partial, tl.program_id(0), c, c < C, C, mean, tl.sum(deviation * deviation, 0) / count
    )


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
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """Write the sums of g and g * x by tile, where g is the gradient before the ReLU."""
    c, mask, place = _tile(M, C, BM, BC)
    g = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        g = _before_relu(g, values, out, place, scale, shift, c, C, mask)
    store_sums(partial, tl.program_id(0), c, c < C, C, tl.sum(g, 0), tl.sum(g * values, 0))


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
    x, residual, scale, shift, out, M, C, RELU: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr
):
    """Write scale * x + shift, plus a residual, or the positive part of it."""
    c, mask, place = _tile(M, C, BM, BC)
    y = scaled(tl.load(x + place, mask=mask, other=0.0), scale, shift, c, c < C)
    if residual is not None:
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
    eps,
    M,
    C,
    SCALED: tl.constexpr,
    RELU: tl.constexpr,
    BATCH: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """Write the gradients of a batch norm from that of its output and its sums [2, C].

    SCALED: grad is past ReLU and scale already, as the input-gradient pass leaves it. BATCH: mean
    and variance are those of x. `other` is another gradient of x, which is added; `dresidual` gets
    the gradient before scale, that of a residual; either may be None.
    """
    c, mask, place = _tile(M, C, BM, BC)
    existing = c < C
    g = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        g = _before_relu(g, values, out, place, scale, shift, c, C, mask)
    if dresidual is not None:
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
    if other is not None:
        g += tl.load(other + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + place, g.to(dx.dtype.element_ty), mask=mask)
    if tl.program_id(0) == 0:
        tl.store(dweight + c, sum_gx.to(dweight.dtype.element_ty), mask=existing)
        tl.store(dbias + c, sum_g.to(dbias.dtype.element_ty), mask=existing)


@triton.jit
def _tile(M, C, BM: tl.constexpr, BC: tl.constexpr):
    """Return the channels of a program's tile, what exists of it, and its offsets."""
    position = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (position < M)[:, None] & (c < C)[None, :]
    return c, mask, position.to(tl.int64)[:, None] * C + c[None, :]


@triton.jit
def _channels(vector, c, existing):
    return tl.load(vector + c, mask=existing, other=0.0).to(tl.float32)


@triton.jit
def _before_relu(g, x, out, place, scale, shift, c, C, mask):
    """Return g where the ReLU's input was positive: by its output, or from x where that is None."""
    if out is not None:
        y = tl.load(out + place, mask=mask, other=0.0)
    else:
        y = scaled(x, scale, shift, c, c < C)
    return tl.where(y > 0, g, 0.0)
