"""Batch norm with residual and ReLU on a CPU, in as few passes over memory as it takes.

The C++ is in source/norms.cpp. Images are channels_last or in rows; all of a call are in the order
of x. Sums are in fp32 and fp64, and equal bit for bit in any number of threads.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sparse_kernels.cpu.library import TYPES, library
from sparse_kernels.memory_order import ORDERS, empty_images, in_order

Vector = Tensor | None
ADJACENT = ("channels_last", "rows")


def supports(x: Tensor) -> bool:
    """Return whether images like x [N, C, H, W] can be normalised as they lie."""
    return x.ndim == 4 and x.dtype in TYPES and x.numel() > 0 and _order(x) is not None


def forward(
    x: Tensor,
    residual: Tensor | None,
    moments: Tensor | None,
    weight: Vector,
    bias: Vector,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """Return relu((x - mean) / sqrt(variance + eps) * weight + bias + residual) and the moments.

    Args:
        x, residual: [N, C, H, W], of one type; the result lies as x.
        moments: mean and variance, fp64 [2, C]; None for those of x, the variance biased.
        weight, bias: [C], or None for 1 and 0.
        relu: whether negative numbers become zero.
    """
    y, batch = like(x), moments is None
    moments = x.new_empty((2, x.shape[1]), dtype=torch.float64) if batch else moments.clone()
    call = _Call.of(x, moments, weight, bias, eps, relu, batch)
    call.set(x, residual=residual, y=y)
    _library().norm_forward(ctypes.byref(call))
    return y, moments


def backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    other: Tensor | None,
    moments: Tensor,
    weight: Vector,
    bias: Vector,
    eps: float,
    relu: bool,
    batch: bool,
    residual: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the gradients of x, residual (None unless wanted), and fp32 [2, C] bias and weight.

    Args:
        grad: of the result.
        y: the result, where there were a residual and a ReLU.
        other: another gradient of x, which is added.
        batch: whether the moments are those of x, so that its gradient goes through them too.
        residual: whether its gradient is wanted.
    """
    dx, dresidual = like(x), like(x) if residual else None
    gradients = torch.empty_like(moments, dtype=torch.float32)
    call = _Call.of(x, moments, weight, bias, eps, relu, batch)
    call.set(x, grad=grad, y=y, other=other, dx=dx, dresidual=dresidual)
    call.gradients = gradients.data_ptr()
    _library().norm_backward(ctypes.byref(call))
    return dx, dresidual, gradients


def like(x: Tensor) -> Tensor:
    """Return empty images that lie as x does, in channels_last where it is in neither order."""
    return torch.empty_like(x) if _order(x) else empty_images(x, x.shape, "channels_last")


def _order(x: Tensor) -> str | None:
    """Return in which of the two orders x lies; the first where it is both, None where neither."""
    return next((o for o in ADJACENT if x.permute(ORDERS[o]).is_contiguous()), None)


class _Call(ctypes.Structure):
    """struct NormCall of norms.cpp; `kept` are copies, until they have been read."""

    _fields_ = [
        *((n, ctypes.c_void_p) for n in ("x", "residual", "grad", "other")),
        *((n, ctypes.c_void_p) for n in ("y", "dx", "dresidual")),
        *((n, ctypes.c_void_p) for n in ("moments", "gradients", "weight", "bias")),
        *(
            (n, ctypes.c_int64)
            for n in ("pixels", "channels", "number", "relu", "batch", "threads")
        ),
        ("eps", ctypes.c_double),
    ]

    @classmethod
    def of(cls, x, moments, weight, bias, eps, relu, batch) -> _Call:
        """Return a call without images but x."""
        order, channels = _order(x), x.shape[1]
        if order is None or x.dtype not in TYPES:
            found = f"{x.dtype} images of strides {x.stride()}"
            raise NotImplementedError(f"native norms are for channels_last and rows, found {found}")
        call = cls(x=x.data_ptr(), pixels=x.numel() // channels, channels=channels, eps=eps)
        call.number, call.threads = TYPES.index(x.dtype), torch.get_num_threads()
        call.relu, call.batch, call.order, call.kept = relu, batch, order, []
        if moments.shape != (2, channels) or moments.dtype != torch.float64:
            raise ValueError(f"moments should be float64 [2, {channels}], found {moments.shape}")
        call.moments = moments.data_ptr()
        for name, vector in (("weight", weight), ("bias", bias)):
            if vector is None:
                continue
            if vector.shape != (channels,):
                raise ValueError(f"{name} should be [{channels}], found {list(vector.shape)}")
            call.keep(name, vector.float().contiguous())
        return call

    def set(self, x: Tensor, **images: Tensor | None) -> None:
        """Add images, in the order of x."""
        for name, image in images.items():
            if image is None:
                continue
            if image.shape != x.shape or image.dtype != x.dtype:
                found = f"{image.dtype} {list(image.shape)}"
                raise ValueError(f"{name} should be {x.dtype} {list(x.shape)}, found {found}")
            self.keep(name, in_order(image, self.order))

    def keep(self, name: str, tensor: Tensor) -> None:
        """Set a pointer, and keep the tensor that it points to."""
        self.kept.append(tensor)
        setattr(self, name, tensor.data_ptr())


def _library() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise NotImplementedError("native kernels cannot be compiled here")
    return found
