"""How an operator is registered with `torch.library`: kernel, fake, FLOP formula, definition.

Operators have the arguments (first, second, index, sizes, ...): two tensors, the layout's lists as
one and its sizes (a schema takes no classes), then numbers and what else there is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

NAMESPACE = "sparse_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
DEFINITIONS: dict[Any, Callable[..., Any]] = {}


def define(
    name: str,
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    flops: Callable[..., int] = lambda *_, **__: 0,
    definition: Callable[..., Any] | None = None,
) -> Any:
    """Register an operator without gradients and return it.

    Args:
        name: within the namespace sparse_kernels.
        schema: arguments and result, as in `(Tensor x, ...) -> Tensor`.
        kernel: computes the result, from the operator's arguments.
        fake: an empty result, from the operator's arguments.
        flops: from the shapes of the arguments, and out_shape.
        definition: the result by PyTorch's own operators, none of which writes in place, in the
            memory order of the fake; for graphs that run without this package.
    """
    LIBRARY.define(f"{name}{schema}")
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    packet = getattr(getattr(torch.ops, NAMESPACE), name)
    register_flop_formula(packet)(flops)
    if definition is not None:
        DEFINITIONS[packet.default] = definition
    return packet.default


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return definitions by operator, as `torch.export.ExportedProgram.run_decompositions` takes.

    A program that is decomposed by them runs where this package is not installed. Missing are
    fused operators of training and gradients of fused ones.
    """
    return dict(DEFINITIONS)


def runnable(operator: Any) -> Callable[..., Any]:
    """Return an operator; its definition while ONNX is written, which has no such operator."""
    return DEFINITIONS[operator] if is_onnx_written() else operator


def is_onnx_written() -> bool:
    """Return whether torch.onnx.export is at work."""
    # Asked outside of a trace, torch.onnx would import its exporters.
    traced = torch.compiler.is_exporting() or torch.jit.is_tracing()
    return traced and torch.onnx.is_in_onnx_export()


def block_flops(values_shape: Sequence[int], positions: int) -> int:
    """Return 2 * Z * BC * BO * positions: padded edges are computed, so they count."""
    slots, bc, bo = values_shape
    return 2 * slots * bc * bo * positions


def positions(shape: Sequence[int], channel_dimension: int) -> int:
    """Return how many vectors of channels a tensor of this shape holds."""
    return torch.Size(shape).numel() // shape[channel_dimension]
