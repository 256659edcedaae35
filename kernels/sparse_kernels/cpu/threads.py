"""Shares of a batch in threads of one core each.

The gemm path makes thousands of small products. Would each be shared by the library's threads,
they would wait for each other thousands of times: on a machine with other work to do, for a slice
of the scheduler's time each. Here they wait once for an operator.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
# Fewer rows of a product are not worth a thread.
LEAST_ROWS = 256


def shared(function: Callable[..., Result], *batches: Tensor, rows: int) -> list[Result]:
    """Call a function with shares of tensors, in torch.get_num_threads() threads.

    Args:
        function: takes a share of each batch; nothing it does is recorded by autograd.
        batches: cut along their first dimension, in as many shares each.
        rows: of all products together.

    Returns:
        The results, in the order of the shares, which depend on sizes and threads alone.
    """
    threads, length = torch.get_num_threads(), len(batches[0])
    count = max(1, min(threads, length, rows // LEAST_ROWS))
    # One large image cannot be shared here: the library's threads share its products.
    if threads == 1 or (count == 1 and rows >= 2 * LEAST_ROWS):
        return [function(*batches)]
    inference = torch.is_inference_mode_enabled()

    def run(*share: Tensor) -> Result:
        with torch.inference_mode(inference), torch._C._AutoDispatchBelowAutograd():
            return function(*share)

    shares = (batch.tensor_split(count) for batch in batches)
    return list(_pool(os.getpid(), threads).map(run, *shares))


def in_threads(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """Make calls in torch.get_num_threads() threads of one core each; return their results.

    They run in the caller's inference, gradient and autocast modes.
    """
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def run(call: Callable[[], Result]) -> Result:
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(gradients),
            torch.autocast("cpu", dtype, enabled=autocast),
        ):
            return call()

    return list(_pool(os.getpid(), torch.get_num_threads()).map(run, calls))


@functools.lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return threads of one core each; a forked process needs its own."""
    ready = threading.Barrier(threads + 1)

    def start() -> None:
        # Asked first, or the first operator would set the number anew.
        torch.get_num_threads()
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, "sparse-gemm", start)
    for _ in range(threads):
        pool.submit(int)
    ready.wait()
    # The setting holds for one thread, but is also what threads begun later start with.
    torch.set_num_threads(threads)
    return pool
