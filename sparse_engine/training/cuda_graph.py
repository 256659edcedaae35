"""Functions recorded in a CUDA graph: hundreds of launches become one.

A graph repeats the kernels of its recording on the same addresses and with the same Python numbers.
What changes between replays must therefore lie in tensors that are written in place.

The nodes that accumulate a parameter's gradients stay bound to the stream on which they were made,
and live as long as any graph of autograd does that has them. Such a graph of an earlier step on the
default stream makes a recording fail: who records lets go of every loss before.
"""

import contextlib
import gc
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
            gc.collect()  # a reference cycle may hold an earlier step's graph
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
    """Record a function without running it; return what replays it, and its results.

    Raises:
        Exception: what the function raised, or else what ended the recording; the stream, random
            numbers and the allocator are then as they were before.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    stream, failure = torch.cuda.current_stream(), None
    try:
        # Of this thread alone: a loader's threads may allocate meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            try:
                return graph.replay, function()
            except Exception as error:
                failure = error  # and not what then ends the recording
                raise
    except Exception as error:
        failure = failure or error
    try:
        torch.cuda.set_stream(stream)
        _recover(graph, pool)
        raise failure
    finally:
        failure = None  # else it and this frame would hold each other, and all that was computed


def _recover(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """Undo what a failed recording leaves behind in torch; what cannot be undone is left.

    torch.cuda.graph ends the recording before it restores the stream, and not at all where that
    fails. The default generator then still believes that it is recorded, until a recording ends
    well; and in torch 2.11 the allocator keeps serving the lost pool and frees no cached block.
    """
    with contextlib.suppress(RuntimeError):
        graph.reset()
        device = torch.cuda.current_device()
        torch._C._cuda_endAllocateToPool(device, pool)  # fails where reset() has done it
        torch._C._cuda_releasePool(device, pool)
    with contextlib.suppress(RuntimeError):
        number = torch.zeros(1, device="cuda")
        # On a stream of its own, for the usual one may be broken.
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream()):
            number.add_(1)


def on_side_stream(function: Callable[[], Any]) -> Any:
    """Call a function on a stream of its own, as what comes before a recording has to be."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = function()
    torch.cuda.current_stream().wait_stream(stream)
    return result
