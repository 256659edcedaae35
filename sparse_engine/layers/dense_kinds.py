"""Which dense layers can be sparse, and their weights as all are planned: [O, C] or [O, C, R, S].

Most keep their weight so. nn.Conv1d, a convolution of height 1, has [O, C, S], and the Conv1D of
GPT-2 in transformers, a linear layer whatever its name says, [C, O].
"""

from typing import Any

from torch import Tensor, nn

from sparse_engine.shards import kind_of

# The output projection of nn.MultiheadAttention is a Linear under another name.
LINEARS = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
# By name: importing transformers takes long, and there is one only where it is imported.
TRANSPOSED = ("transformers.pytorch_utils", "Conv1D")


def is_dense_kind(module: nn.Module) -> bool:
    """Return whether a module is a layer that may become sparse, subclasses included."""
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) or is_transposed(module)


def is_own_class(module: nn.Module) -> bool:
    """Return whether a module's class is one of these layers itself, not a subclass.

    Those that fully_shard makes are none.
    """
    kind = kind_of(module)
    return kind in (*LINEARS, *CONVOLUTIONS) or _name(kind) == TRANSPOSED


def is_transposed(module: nn.Module) -> bool:
    """Return whether a module is a Conv1D of transformers, whose weight is [C, O]."""
    return any(_name(kind) == TRANSPOSED for kind in type(module).__mro__)


def planned(layer: nn.Module, tensor: Tensor) -> Tensor:
    """Return a tensor of the shape of a dense layer's weight as [O, C] or [O, C, R, S]; a view."""
    if is_transposed(layer):
        return tensor.t()
    return tensor.unsqueeze(2) if isinstance(layer, nn.Conv1d) else tensor


def unplanned(layer: nn.Module, tensor: Tensor) -> Tensor:
    """Return the inverse of planned; a tensor with four dimensions for a linear layer too."""
    if is_transposed(layer):
        return tensor.flatten(1).t()
    return tensor.reshape(layer.weight.shape)


def planned_shape(layer: nn.Module) -> tuple[int, ...]:
    """Return (O, C) or (O, C, R, S) of a dense layer."""
    shape: Any = tuple(layer.weight.shape)
    if is_transposed(layer):
        return shape[::-1]
    return (*shape[:2], 1, shape[2]) if isinstance(layer, nn.Conv1d) else shape


def _name(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__name__
