"""How an operator is registered with `torch.library`: kernel, fake, autograd and FLOP formula.

`torch.library.custom_op` would do the same with less code, and costs about 0.25 ms more per layer
and step on a CPU (forward and both gradients), which small layers feel.

Every operator has the arguments (first, second, index, sizes, ...): two tensors, the layout's
index tensors and its sizes (a schema takes no classes), then numbers and at most one bias.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

NAMESPACE = "sparse_kernels"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")

Gradients = Sequence[Tensor | None]


def register(
    name: str,
    schema: str,
    kernel: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    backward: Callable[..., Gradients],
    flops: Callable[..., int],
) -> Callable[..., Tensor]:
    """Register an operator and return it.

    Args:
        name: within the namespace sparse_kernels.
        schema: arguments and result, as in `(Tensor x, ...) -> Tensor`.
        kernel: computes the result, from the operator's arguments.
        fake: an empty result, from the operator's arguments.
        backward: gradients of first, second and, where there is one, bias, from
            (which are needed, gradient of the result, *arguments without bias).
        flops: from the shapes of the arguments, and out_shape.
    """
    operator = define(name, schema, kernel, fake, flops)
    make_differentiable(operator, _function(operator, backward))
    return operator


def define(
    name: str,
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    flops: Callable[..., int],
) -> Any:
    """Register an operator without gradients and return it; arguments as of `register`."""
    _LIBRARY.define(f"{name}{schema}")
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    packet = getattr(getattr(torch.ops, NAMESPACE), name)
    register_flop_formula(packet)(flops)
    return packet.default


def make_differentiable(operator: Any, function: type[torch.autograd.Function]) -> None:
    """Let autograd run `function`, whose forward calls the operator in `below_autograd()`."""
    _LIBRARY.impl(operator.overloadpacket.__name__, function.apply, "Autograd")


def below_autograd() -> Any:
    """Return a context in which operators are computed and not recorded."""
    return torch._C._AutoDispatchBelowAutograd()


def _function(operator: Any, backward: Callable[..., Gradients]) -> type[torch.autograd.Function]:
    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, first: Tensor, second: Tensor, index: Any, sizes: Any, *rest: Any):
            ctx.save_for_backward(first, second, *index)
            ctx.numbers = [sizes, *(r for r in rest if not isinstance(r, Tensor | None))]
            with below_autograd():
                return _owned(operator(first, second, index, sizes, *rest))

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            first, second, *index = ctx.saved_tensors
            needed = ctx.needs_input_grad
            found = backward(needed, grad, first, second, index, *ctx.numbers)
            between = [None] * (len(needed) - len(found))
            return (*found[:2], *between, *found[2:])

    Node.__name__ = f"{operator.overloadpacket.__name__}_autograd"
    return Node


def _owned(result: Tensor) -> Tensor:
    """Return a result that is no view, so that an activation may be applied to it in place."""
    if not result._is_view():
        return result
    storage, start = result.untyped_storage(), result.storage_offset()
    return result.new_empty(0).set_(storage, start, result.shape, result.stride())


def block_flops(values_shape: Sequence[int], positions: int) -> int:
    """Return 2 * Z * BC * BO * positions: padded edges are computed, so they count."""
    slots, bc, bo = values_shape
    return 2 * slots * bc * bo * positions


def positions(shape: Sequence[int], channel_dimension: int) -> int:
    """Return how many vectors of channels a tensor of this shape holds."""
    return torch.Size(shape).numel() // shape[channel_dimension]


def values_like(x: Tensor, index: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Return empty values [Z, BC, BO] with the dtype and device of x."""
    return x.new_empty((index[0].shape[0], sizes[5], sizes[4]))
