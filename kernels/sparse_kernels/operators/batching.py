"""How an operator runs for a whole batch of its arguments at once: the rules of torch.func.vmap.

Where the first tensor alone is batched, and the operator treats its rows one by one, the batch is
more rows: one product. Anything else is a product for each of the batch, stacked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels.registration import LIBRARY

Dims = Sequence[Any]


def register_vmap(operator: Any, joins_rows: bool, images: bool) -> None:
    """Let torch.func.vmap run an operator (first, second, index, sizes, ..., bias or not).

    Args:
        operator: from `registration.define`.
        joins_rows: whether each row of the result is made of the row of `first` with its number.
        images: whether `first` is [N, C, H, W]; otherwise [..., C].
    """

    def rule(info: Any, dims: Dims, first: Tensor, *others: Any) -> tuple[Tensor, int]:
        if joins_rows and not any(isinstance(dim, int) for dim in _flat(dims[1:])):
            first = first.movedim(dims[0], 0)
            return _of_more_rows(operator, first, others, images), 0
        return _one_by_one(operator, info.batch_size, dims, (first, *others)), 0

    torch.library.register_vmap(operator.name(), rule, lib=LIBRARY)


def _of_more_rows(
    operator: Callable[..., Tensor], first: Tensor, others: Sequence[Any], images: bool
) -> Tensor:
    """Return the results for first [B, ...] as [B, ...]."""
    if not images:
        return operator(first, *others)
    return operator(first.flatten(0, 1), *others).unflatten(0, first.shape[:2])


def _one_by_one(
    operator: Callable[..., Tensor], size: int, dims: Dims, arguments: Sequence[Any]
) -> Tensor:
    """Return the results for each of a batch as [B, ...]."""
    results = [
        operator(*(_one_of(argument, dim, number) for argument, dim in zip(arguments, dims)))
        for number in range(size)
    ]
    return torch.stack(results)


def _one_of(argument: Any, dim: Any, number: int) -> Any:
    if isinstance(argument, Tensor):
        return argument if dim is None else argument.select(dim, number)
    if isinstance(dim, list | tuple) and any(isinstance(d, int) for d in dim):
        return [_one_of(part, d, number) for part, d in zip(argument, dim)]
    return argument


def _flat(dims: Any) -> list[Any]:
    if isinstance(dims, list | tuple):
        return [dim for part in dims for dim in _flat(part)]
    return [dims]
