"""What the kernels do to a tile before and after they multiply it, in place of passes over memory.

The input of a layer may be transformed as it is loaded (batch norm and ReLU: scale * x + shift
by channel, or its positive part); the output's batch-norm sums may be written by tile. In the
input-gradient pass the same transform is undone by the chain rule as a tile is stored. INPUT is
"plain", "affine" or "affine_relu".
"""

import triton
import triton.language as tl


@triton.jit
def transformed(x, scale, shift, c, C, inside, INPUT: tl.constexpr):
    """Transform a loaded tile x [M, K] of channels c; zero outside the image and past channel C."""
    pre = scaled(x, scale, shift, c, c < C)
    if INPUT == "affine_relu":
        pre = tl.where(pre < 0, 0.0, pre)
    return tl.where(inside, pre, 0.0).to(x.dtype)


@triton.jit
def finished_output(
    acc, bias, partial, tile, out, written, real, count, C_DST, dtype: tl.constexpr
):
    """Return what to store of an output's sums acc [M, D]: with the bias, if there is one.

    `out` [D] are the channels and `written` [D] which of them exist, `real` [M, 1] which positions
    do, of which the tile has `count`. partial [tiles, 2, C_DST] gets mean and variance of the tile
    by channel; it is None where nobody asks.
    """
    if bias is not None:
        acc += tl.load(bias + out, mask=written, other=0.0).to(tl.float32)[None, :]
    if partial is not None:
        # Of the rounded output, which is what a separate pass over it would see.
        y = acc.to(dtype).to(tl.float32)
        mean = tl.sum(tl.where(real, y, 0.0), 0) / count
        deviation = tl.where(real, y - mean[None, :], 0.0)
        variance = tl.sum(deviation * deviation, 0) / count
        store_sums(partial, tile, out, written, C_DST, mean, variance)
    return acc


@triton.jit
def finished_gradient(
    acc, x, scale, shift, partial, tile, out, written, real, C_DST, INPUT: tl.constexpr
):
    """Return what to store of the sums acc [M, D], the gradient of the transformed input x.

    partial [tiles, 2, C_DST] gets the tile's sums of g and g * x by channel, the gradients of shift
    and scale, where g is the gradient before the ReLU. The rest as of finished_output.
    """
    if INPUT == "affine_relu":
        acc = tl.where(scaled(x, scale, shift, out, written) > 0, acc, 0.0)
    g = tl.where(real, acc, 0.0)
    of_scale = tl.sum(g * x.to(tl.float32), 0)
    store_sums(partial, tile, out, written, C_DST, tl.sum(g, 0), of_scale)
    return acc * tl.load(scale + out, mask=written, other=0.0)[None, :]


@triton.jit
def store_sums(partial, tile, out, written, C_DST, first, second):
    """Write two numbers by channel to a tile's place in partial [tiles, 2, C_DST]."""
    sums = partial + tile.to(tl.int64) * 2 * C_DST + out
    tl.store(sums, first, mask=written)
    tl.store(sums + C_DST, second, mask=written)


@triton.jit
def scaled(x, scale, shift, c, existing):
    """Return scale * x + shift of a tile x [M, K] of channels c, of which some exist."""
    a = tl.load(scale + c, mask=existing, other=0.0)
    b = tl.load(shift + c, mask=existing, other=0.0)
    return x.to(tl.float32) * a[None, :] + b[None, :]
