"""Forward, input gradient and weight gradient of a layer as three operators.

The three are bilinear maps, and the gradient of each is given by the other two, so each can be
differentiated again.

`torch.library.custom_op` would do the same with less code, and costs about 0.25 ms more per layer
and step on a CPU (forward and both gradients), which small layers feel.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from sparse_kernels.index_tensors import count_slots
from sparse_kernels.operators.batching import register_vmap
from sparse_kernels.registration import LIBRARY, block_flops, define, positions
from sparse_kernels.transforms import without_level

Gradients = Sequence[Tensor | None]
LISTS = "Tensor[] index, int[] sizes"


class Passes(NamedTuple):
    """A function of an operator's arguments for each of the three."""

    forward: Callable[..., Tensor]
    input_grad: Callable[..., Tensor]
    weight_grad: Callable[..., Tensor]


def values_like(x: Tensor, grad: Tensor, index: Sequence[Tensor], sizes: Sequence[int], *_: Any):
    """Return an empty weight gradient [Z, BC, BO] with the dtype and device of x."""
    bo, bc = sizes[4:]
    return x.new_empty((count_slots(index), bc, bo))


def register_passes(
    name: str,
    geometry: str,
    kernels: Passes,
    fakes: Passes,
    definitions: Passes,
    prepared: Callable[..., Tensor],
    bias_grad: Callable[[Tensor], Tensor],
) -> tuple[Any, Any, Any]:
    """Register NAME, NAME_input_grad and NAME_weight_grad and return them.

    Args:
        name: within the namespace sparse_kernels.
        geometry: the numbers of a convolution, as a schema has them; nothing for a linear layer.
            The input gradient of a convolution is told the size of the image before them.
        kernels: compute the results.
        fakes: return empty ones.
        definitions: compute them by PyTorch's own operators (see registration.define).
        prepared: the output's gradient as both passes of it want it, from (grad, x, index, sizes).
        bias_grad: the gradient of a bias, from that of the output.
    """
    images = bool(geometry)
    channels = 1 if images else -1
    numbers = f"{LISTS}, {geometry}" if images else LISTS
    image_and_numbers = f"{LISTS}, int[] image, {geometry}" if images else LISTS
    forward = define(
        name,
        f"(Tensor x, Tensor values, {numbers}, Tensor? bias=None) -> Tensor",
        kernels.forward,
        fakes.forward,
        lambda x, values, *_, out_shape, **__: block_flops(values, positions(out_shape, channels)),
        definitions.forward,
    )
    input_grad = define(
        f"{name}_input_grad",
        f"(Tensor grad, Tensor values, {image_and_numbers}) -> Tensor",
        kernels.input_grad,
        fakes.input_grad,
        lambda grad, values, *_, **__: block_flops(values, positions(grad, channels)),
        definitions.input_grad,
    )
    weight_grad = define(
        f"{name}_weight_grad",
        f"(Tensor x, Tensor grad, {numbers}) -> Tensor",
        kernels.weight_grad,
        fakes.weight_grad,
        lambda x, grad, *_, out_shape, **__: block_flops(out_shape, positions(grad, channels)),
        definitions.weight_grad,
    )

    def image_of(x: Tensor) -> list[Sequence[int]]:
        return [x.shape[2:]] if images else []

    def of_forward(needed, grad, x, values, index, sizes, *geometry) -> Gradients:
        grad = prepared(grad, x, index, sizes)
        rest = (index, sizes, *image_of(x), *geometry)
        return (
            input_grad(grad, values, *rest) if needed[0] else None,
            weight_grad(x, grad, index, sizes, *geometry) if needed[1] else None,
            bias_grad(grad) if needed[-1] else None,
        )

    def of_input_grad(needed, ddx, grad, values, index, sizes, *numbers) -> Gradients:
        geometry = numbers[len(image_of(ddx)) :]
        return (
            forward(ddx, values, index, sizes, *geometry) if needed[0] else None,
            weight_grad(ddx, grad, index, sizes, *geometry) if needed[1] else None,
        )

    def of_weight_grad(needed, ddvalues, x, grad, index, sizes, *geometry) -> Gradients:
        rest = (index, sizes, *image_of(x), *geometry)
        return (
            input_grad(grad, ddvalues, *rest) if needed[0] else None,
            forward(x, ddvalues, index, sizes, *geometry) if needed[1] else None,
        )

    _make_differentiable(forward, of_forward, lambda bias: bias[:, None, None] if images else bias)
    _make_differentiable(input_grad, of_input_grad)
    _make_differentiable(weight_grad, of_weight_grad)
    register_vmap(forward, joins_rows=True, images=images)
    register_vmap(input_grad, joins_rows=True, images=images)
    register_vmap(weight_grad, joins_rows=False, images=images)
    return forward, input_grad, weight_grad


def _make_differentiable(
    operator: Any,
    backward: Callable[..., Gradients],
    spread: Callable[[Tensor], Tensor] = lambda bias: bias,
) -> None:
    """Let autograd record an operator, forward AD follow it, and torch.func transform it.

    backward: gradients of first, second and, where there is one, bias, from (which are needed,
        gradient of the result, *arguments without bias).
    spread: a bias with dimensions that broadcast to the result.
    """

    class Rules:
        @staticmethod
        def forward(ctx: Any, first: Tensor, second: Tensor, index: Any, sizes: Any, *rest: Any):
            ctx.save_for_backward(first, second, *index)
            ctx.numbers = [sizes, *(r for r in rest if not isinstance(r, Tensor | None))]
            with torch._C._AutoDispatchBelowAutograd():
                result = _owned(operator(first, second, index, sizes, *rest))
            if forward_ad._current_level >= 0:
                Rules.keep_for_jvp(ctx, result, first, second, index)
            return result

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            first, second, *index = ctx.saved_tensors
            needed = ctx.needs_input_grad
            of_first, of_second, *of_bias = backward(
                needed, grad, first, second, index, *ctx.numbers
            )
            between = [None] * (len(needed) - 2 - len(of_bias))
            return of_first, of_second, *between, *of_bias

        @staticmethod
        def keep_for_jvp(ctx: Any, result: Tensor, first: Tensor, second: Tensor, index: Any):
            ctx.save_for_forward(first, second, *index)
            ctx.shape = result.shape

        @staticmethod
        def jvp(ctx: Any, of_first: Tensor | None, of_second: Tensor | None, *rest: Any):
            first, second, *index = ctx.saved_tensors
            *_, of_bias = rest
            parts = [
                None if of_first is None else operator(of_first, second, index, *ctx.numbers),
                None if of_second is None else operator(first, of_second, index, *ctx.numbers),
                None if of_bias is None else spread(of_bias).expand(ctx.shape),
            ]
            return sum(part for part in parts if part is not None)

    class RulesOfLevel(Rules):
        @staticmethod
        def forward(ctx: Any, first: Tensor, second: Tensor, index: Any, *rest: Any):
            # Saved as they are, lists that are written to before backward are noticed.
            index = [without_level(tensor) for tensor in index]
            # Other transforms, which come next, may want gradients and tangents too.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                result = Rules.forward(ctx, first, second, index, *rest)
            Rules.keep_for_jvp(ctx, result, first, second, index)
            return result

    name = operator.overloadpacket.__name__
    node, node_of_level = (
        type(f"{name}_autograd", bases, {})
        for bases in ((Rules, torch.autograd.Function), (RulesOfLevel, _SingleLevelFunction))
    )

    # Without what torch.autograd.Function looks at before it, which is a microsecond a call.
    apply = super(torch.autograd.Function, node).apply

    def record(*arguments: Any) -> Tensor:
        if not torch._C._are_functorch_transforms_active():
            return apply(*unwrap_dead_wrappers(arguments))
        # Under torch.func, as PyTorch's own operators are: recorded for the transform that the
        # dispatcher has come to, which sends on to the next one what runs below autograd.
        with enable_single_level_autograd_function():
            return node_of_level.apply(*arguments)

    LIBRARY.impl(name, record, "Autograd")


def _owned(result: Tensor) -> Tensor:
    """Return a result that is no view, so that an activation may be applied to it in place."""
    if not result._is_view():
        return result
    storage, start = result.untyped_storage(), result.storage_offset()
    return result.new_empty(0).set_(storage, start, result.shape, result.stride())
