"""A stand-in for CUDA graphs on a CPU: every operation is recorded with its tensors and numbers.

As in a graph, a replay computes with the Python numbers of the recording, reads and writes the
tensors of the recording, and runs no Python of the function.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from sparse_engine.training import cuda_graph


class Tape(TorchDispatchMode):
    """Records the operations that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple] = []
        self.is_fresh = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, results))
        return results

    @torch.no_grad()
    def replay(self) -> None:
        """Do everything again, with results in the tensors of the recording.

        Recording has done it once, which a graph does not; so the first replay does nothing.
        """
        operations, self.is_fresh = [] if self.is_fresh else self.operations, False
        for function, args, kwargs, results in operations:
            found = tree_flatten(function(*args, **kwargs))[0]
            for old, new in zip(tree_flatten(results)[0], found, strict=True):
                # Views and in-place operations have written where they belong.
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record as cuda_graph.record does."""
    with Tape() as tape:
        results = function()
    return tape.replay, results


def use_tapes(monkeypatch) -> None:
    """Let CUDA graphs be tapes."""
    monkeypatch.setattr(cuda_graph, "record", record)
    monkeypatch.setattr(cuda_graph, "on_side_stream", lambda function: function())
