"""Block ids inside transforms of torch.func: those of several networks at once.

torch.func.stack_module_state stacks the parameters and buffers of several networks, and a function
under vmap meets the stack as if it were one network's. One layer computes them all, so their blocks
must be the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparse_engine.errors import InputError
from sparse_kernels.transforms import is_wrapped, rows_of

DIFFERENT = (
    "networks under torch.func.vmap must have the same blocks, and these have different ones: call "
    "the networks one after another, densify them first, or use sparse_engine.group(models)"
)
NO_BUFFERS = (
    "a {kind} on the meta device was given values without its block_ids, which say where they "
    "belong: give functional_call the buffers too, functional_call(base, (params, buffers), x)"
)


@contextmanager
def as_of_one(layer: nn.Module) -> Iterator[None]:
    """Let a layer have ordinary buffers while inside: the ids that all networks of a stack share.

    Raises:
        InputError: block ids that differ.
    """
    given = {name: b for name, b in layer._buffers.items() if b is not None and is_wrapped(b)}
    rows = {name: rows_of(buffer) for name, buffer in given.items()}
    if "block_ids" in rows and not _are_equal(rows["block_ids"]):
        raise InputError(DIFFERENT)
    # Of the signs all rows, for whoever asks whether one of them is a mean.
    plain = {n: stack[0].clone() if n == "block_ids" else stack for n, stack in rows.items()}
    layer._buffers.update(plain)
    try:
        yield
    finally:
        layer._buffers.update(given)


def _are_equal(rows: Tensor) -> bool:
    """Return whether all rows hold the same numbers; waits for a GPU.

    Those of the meta device, or of a compiler, have none.
    """
    return len(rows) == 1 or rows.is_meta or type(rows) is not Tensor or _hold_same(rows)


def _hold_same(rows: Tensor) -> bool:
    return torch.equal(rows, rows[:1].expand_as(rows))
