"""Functions recorded in a CUDA graph: hundreds of launches become one.

A graph repeats the kernels of its recording on the same addresses and with the same Python numbers.
What changes between replays must therefore lie in tensors that are written in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Runs before a recording: libraries choose algorithms and allocate workspaces in the first ones.
WARMUP = 3


def record(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record a function without running it; return what replays it, and its results.

    The results are tensors that each replay writes anew. Everything the function needs to have
    done once (workspaces, optimizer state) must have been done before.

    Raises:
        RuntimeError: it does something that cannot be recorded, such as waiting for the device.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph.replay, results


def captured(function: Callable[..., Any], *examples: Tensor) -> Callable[..., Any]:
    """Return a function that replays another for inputs of the examples' shapes.

    Args:
        function: of tensors on a CUDA device; it is called WARMUP times and then recorded.
        examples: its inputs; replays copy theirs into clones of these.

    Returns:
        A function of as many inputs; its results are overwritten by the next call.
    """
    inputs = [example.detach().clone() for example in examples]
    on_side_stream(lambda: [function(*inputs) for _ in range(WARMUP)])
    replay, results = record(lambda: function(*inputs))

    def run(*new: Tensor) -> Any:
        for kept, given in zip(inputs, new, strict=True):
            kept.copy_(given)
        replay()
        return results

    return run


def on_side_stream(function: Callable[[], Any]) -> Any:
    """Call a function on a stream of its own, as what comes before a recording has to be."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = function()
    torch.cuda.current_stream().wait_stream(stream)
    return result
