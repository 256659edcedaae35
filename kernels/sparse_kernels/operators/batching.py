"""How an operator runs for a whole batch of its arguments at once: the rules of vmap.

Where the first tensor alone is batched, and the operator treats its rows one by one, the batch is
more rows: one product. Anything else is a product for each of the batch, stacked.

PyTorch has two vmaps: that of torch.func, and an earlier one, which is_grads_batched and
torch.autograd.functional (vectorize=True) use.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels.registration import LIBRARY

# Of each argument the dimension of the batch, None where there is none; a list has a list.
Dims = Sequence[Any]
Rule = Callable[[int, Dims, Sequence[Any]], Tensor]


def register_vmap(operator: Any, joins_rows: bool, images: bool) -> None:
    """Let vmap run an operator (first, second, index, sizes, ..., bias or not).

    Args:
        operator: from `registration.define`.
        joins_rows: whether each row of the result is made of the row of `first` with its number.
        images: whether `first` is [N, C, H, W]; otherwise [..., C].
    """

    def rule(size: int, dims: Dims, arguments: Sequence[Any]) -> Tensor:
        """Return the results [B, ...] of a batch of B."""
        only_first = dims[0] is not None and not any(_is_batched(dim) for dim in dims[1:])
        if joins_rows and only_first:
            first, *others = arguments
            return _of_more_rows(operator, first.movedim(dims[0], 0), others, images)
        return _one_by_one(operator, size, dims, arguments)

    def of_torch_func(info: Any, dims: Dims, *arguments: Any) -> tuple[Tensor, int]:
        return rule(info.batch_size, dims, arguments), 0

    def earlier(*arguments: Any) -> Tensor:
        return _of_levels(operator, rule, arguments)

    torch.library.register_vmap(operator.name(), of_torch_func, lib=LIBRARY)
    LIBRARY.impl(operator.overloadpacket.__name__, earlier, "Batched")


def _is_batched(dim: Any) -> bool:
    return any(map(_is_batched, dim)) if isinstance(dim, list | tuple) else isinstance(dim, int)


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
    """Return the results for each of a batch as [B, ...]; of none of the shape that they'd have."""
    results = [
        operator(*(_one_of(argument, dim, number) for argument, dim in zip(arguments, dims)))
        for number in range(max(size, 1))
    ]
    return torch.stack(results)[:size]


def _one_of(argument: Any, dim: Any, number: int) -> Any:
    if isinstance(dim, int):
        return argument.select(dim, number) if argument.shape[dim] else argument.sum(dim)
    if isinstance(argument, Sequence) and _is_batched(dim):
        return [_one_of(part, d, number) for part, d in zip(argument, dim)]
    return argument


def _of_levels(operator: Any, rule: Rule, arguments: Sequence[Any]) -> Tensor:
    """Return an operator's result for tensors of the earlier vmap, the innermost one first."""
    innermost = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    for level in range(innermost, 0, -1):
        # Those that have no batch of the level are given one of 1.
        rows = [
            torch._remove_batch_dim(a, level, 1, 0) if isinstance(a, Tensor) else a
            for a in arguments
        ]
        dims = [0 if isinstance(a, Tensor) and a.shape[0] != 1 else None for a in rows]
        arguments = [a[0] if isinstance(a, Tensor) and d is None else a for a, d in zip(rows, dims)]
        if _is_batched(dims):
            size = next(a.shape[0] for a, d in zip(arguments, dims) if d is not None)
            return torch._add_batch_dim(rule(size, dims, arguments), 0, level)
    return operator(*arguments)
