"""What the kernels do to a tile before and after they multiply it, in place of passes over memory.

The input of a layer may be transformed as it is loaded (batch norm and ReLU: scale * x + shift
by channel, or its positive part); the output may be rectified, and its batch-norm sums written by
tile. In the input-gradient pass the same transform is undone by the chain rule as a tile is stored.
INPUT is "plain", "affine" or "affine_relu".
"""

import triton
import triton.language as tl


@triton.jit
def transformed(x, scale, shift, c, C, inside, INPUT: tl.constexpr):
    """Transform a loaded tile x [M, K] of channels c; zero outside the image and past channel C."""
    pre = _affine(x, scale, shift, c, c < C)
    if INPUT == "affine_relu":
        pre = tl.where(pre < 0, 0.0, pre)
    return tl.where(inside, pre, 0.0).to(x.dtype)


@triton.jit
def finished(
    acc,
    x,
    bias,
    scale,
    shift,
    partial,
    tile,
    out,
    written,
    real,
    count,
    C_DST,
    dtype: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    INPUT: tl.constexpr,
    RELU: tl.constexpr,
):
    """Return what to store of the sums acc [M, D], and write the tile's two sums by channel.

    x is the layer's input where TRANSPOSED and INPUT says so; `real` [M, 1] are the tile's `count`
    positions; `written` [D] the channels that exist. partial is [tiles, 2, C_DST]: mean and
    variance of the output, or the sums of `g` and `g * x` (the gradients of shift and scale),
    where g is the gradient of the transformed input before its ReLU; None where nobody asks.
    """
    if bias is not None:
        acc += tl.load(bias + out, mask=written, other=0.0).to(tl.float32)[None, :]
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)
    if partial is not None:
        sums = partial + tile.to(tl.int64) * 2 * C_DST + out
    if partial is not None and not TRANSPOSED:
        # Of the rounded output, which is what a separate pass over it would see.
        y = acc.to(dtype).to(tl.float32)
        mean = tl.sum(tl.where(real, y, 0.0), 0) / count
        deviation = tl.where(real, y - mean[None, :], 0.0)
        tl.store(sums, mean, mask=written)
        tl.store(sums + C_DST, tl.sum(deviation * deviation, 0) / count, mask=written)
    if TRANSPOSED and INPUT != "plain":
        if INPUT == "affine_relu":
            acc = tl.where(_affine(x, scale, shift, out, written) > 0, acc, 0.0)
        g = tl.where(real, acc, 0.0)
        tl.store(sums, tl.sum(g, 0), mask=written)
        tl.store(sums + C_DST, tl.sum(g * x.to(tl.float32), 0), mask=written)
        acc *= tl.load(scale + out, mask=written, other=0.0)[None, :]
    return acc


@triton.jit
def _affine(x, scale, shift, c, existing):
    a = tl.load(scale + c, mask=existing, other=0.0)
    b = tl.load(shift + c, mask=existing, other=0.0)
    return x.to(tl.float32) * a[None, :] + b[None, :]
