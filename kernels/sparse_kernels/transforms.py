"""Transforms of functions, by torch.func and by forward AD: whether one is at work, and on what.

torch.func gives a function tensors that stand for others: one that stands for all of a batch
(vmap), one whose gradient is taken (grad, vjp, jvp). Such tensors can be inside one another.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

_functorch = torch._C._functorch


def is_transformed() -> bool:
    """Return whether code runs inside a transform, or where tensors may have tangents."""
    return torch._C._are_functorch_transforms_active() or is_forward_ad()


def is_forward_ad() -> bool:
    """Return whether tensors may have tangents."""
    return forward_ad._current_level >= 0


@contextmanager
def untransformed() -> Iterator[None]:
    """Let what is inside run as outside of all transforms, on ordinary tensors."""
    with temporarily_clear_interpreter_stack():
        yield


def is_wrapped(tensor: Tensor) -> bool:
    """Return whether a tensor stands for another one."""
    return _functorch.is_batchedtensor(tensor) or _functorch.is_gradtrackingtensor(tensor)


def is_batched(tensor: Tensor) -> bool:
    """Return whether a tensor stands for a batch, in either of PyTorch's two vmaps."""
    if torch.compiler.is_compiling():  # whose graphs are for ordinary tensors
        return False
    return _functorch.is_batchedtensor(tensor) or _functorch.is_legacy_batchedtensor(tensor)


def refuse_batches(grad: Tensor | None) -> None:
    """Raise RuntimeError for a gradient that stands for a batch, where the kernels take one."""
    if grad is not None and is_batched(grad):
        raise RuntimeError(
            "fused passes take no batch of gradients (is_grads_batched, vectorize=True): use "
            "torch.func.jacrev, or torch.func.vmap of torch.func.vjp, which leave the passes apart"
        )


def without_level(tensor: Tensor) -> Tensor:
    """Return the tensor that one stands for whose gradients are taken; others as they are."""
    while _functorch.is_gradtrackingtensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def rows_of(tensor: Tensor) -> Tensor:
    """Return the numbers that a tensor [...] stands for as [B, ...], one row for each of a batch.

    An ordinary tensor is a batch of one.
    """
    dims = []  # of batches, the outermost transform's first, each among those inside of it
    while is_wrapped(tensor):
        if _functorch.is_batchedtensor(tensor):
            dims.append(_functorch.maybe_get_bdim(tensor))
        tensor = _functorch.get_unwrapped(tensor)
    if not dims:
        return tensor[None]
    own = list(range(tensor.ndim))
    of_batches = [own.pop(dim) for dim in reversed(dims)]
    return tensor.permute(*of_batches, *own).flatten(0, len(dims) - 1)
