"""Which combination of known dense gradients somebody has written to `values.grad`.

`values.grad` is the dense gradient at the active blocks. Of dense gradients whose active blocks are
known, it therefore tells how much of each counts: half of one after clipping, one of two that
torch.autograd.grad returned, none after zero_(). All stays on the device; nothing waits for it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

EXPLAINED = 0.02  # of a gradient's norm may be left over; bfloat16 rounds 0.004


def matching(
    target: Tensor, dense: Sequence[Tensor], restrict: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the combination of dense gradients that `target` is at the active blocks.

    Where no combination is near, as after averaging over processes or with noise on it, their sum;
    zero where the target is. One that is zero at the active blocks, of which the target tells
    nothing, counts whole. The dense gradients are overwritten.

    Args:
        target: values.grad, [Z, BC, BO].
        dense: [O, C, R, S] each, one at least.
        restrict: makes [Z, BC, BO] of one of them.
    """
    exact = torch.promote_types(target.dtype, torch.float32)
    wanted = target.detach().to(exact).flatten()
    largest = wanted.abs().max()
    known = [restrict(d).to(exact).flatten() for d in dense]
    scaled = [vector / largest for vector in known]
    factors, is_near = _least_squares(wanted / largest, scaled, torch.finfo(target.dtype).eps)
    # No product with a factor of zero or one: it would make nan of inf.
    is_told = torch.stack([vector.any() for vector in known])
    factors = torch.where(is_near, factors, 1).where(largest != 0, 0).where(is_told, 1)
    for gradient, factor in zip(dense, factors.to(dense[0].dtype), strict=True):
        gradient.mul_(factor).masked_fill_(factor == 0, 0)
    total = dense[0]
    for gradient in dense[1:]:
        total += gradient
    return total


def _least_squares(
    target: Tensor, known: Sequence[Tensor], precision: float
) -> tuple[Tensor, Tensor]:
    """Return how much [K] of each of K vectors is in the target, and whether little is left.

    By Gram and Schmidt: the solvers of torch.linalg wait for the device. The square of what is new
    in a vector is a share of its own that is above the precision, or the vector is not used.
    """
    units = torch.eye(len(known), dtype=target.dtype, device=target.device)
    factors, left, basis = torch.zeros_like(units[0]), target, []
    for vector, unit in zip(known, units, strict=True):
        size = vector.dot(vector)
        for other, own_unit, share_of in basis:
            share = share_of(vector)
            vector, unit = vector - share * other, unit - share * own_unit
        is_new = vector.dot(vector) > precision * size
        share_of = _projection(vector, is_new)
        share = share_of(left)
        left, factors = left - share * vector, factors + share * unit
        basis.append((vector, unit, share_of))
    return factors, left.dot(left) <= EXPLAINED**2 * target.dot(target)


def _projection(direction: Tensor, is_used: Tensor) -> Callable[[Tensor], Tensor]:
    square = direction.dot(direction)
    return lambda vector: torch.where(is_used, vector.dot(direction) / square, 0)
