"""Calls in threads of one core each: the members of an ensemble, for example.

Would each of their operators be shared by the library's threads, they would wait for each other
once an operator: on a machine with other work to do, for a slice of the scheduler's time each.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


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

    pool = ThreadPoolExecutor(threads, "sparse", start)
    for _ in range(threads):
        pool.submit(int)
    ready.wait()
    # The setting holds for one thread, but is also what threads begun later start with.
    torch.set_num_threads(threads)
    return pool
