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


class Repeated:
    """A function of tensors that runs as it is WARMUP times, is then recorded, and replayed.

    Inputs must have the same shapes in every call. Results are overwritten by the next call.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Take a function that always does the same with its inputs, on a CUDA device."""
        self._function = function
        self._runs = 0
        self._inputs: list[Tensor] = []
        self._replay: Callable[[], None] | None = None
        self._results: Any = None

    @property
    def is_recorded(self) -> bool:
        """Whether calls are replays."""
        return self._replay is not None

    def __call__(self, *inputs: Tensor) -> Any:
        """Call the function.

        Raises:
            RuntimeError: it does something that cannot be recorded, such as waiting for the
                device; in that call nothing has been done.
        """
        if self._runs < WARMUP:
            self._runs += 1
            return on_side_stream(lambda: self._function(*inputs))
        if self._replay is None:
            self._inputs = [x.detach().clone() for x in inputs]
            self._replay, self._results = record(lambda: self._function(*self._inputs))
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._replay()
        return self._results


def captured(function: Callable[..., Any], *examples: Tensor) -> Repeated:
    """Return a function that is recorded when it is next called; the examples are its warm-up."""
    repeated = Repeated(function)
    for _ in range(WARMUP):
        repeated(*examples)
    return repeated


def record(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record a function without running it; return what replays it, and its results."""
    graph = torch.cuda.CUDAGraph()
    # Of this thread alone: a loader's threads may allocate meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = function()
    return graph.replay, results


def on_side_stream(function: Callable[[], Any]) -> Any:
    """Call a function on a stream of its own, as what comes before a recording has to be."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = function()
    torch.cuda.current_stream().wait_stream(stream)
    return result
