"""Constant fan-in: every row of blocks of a layer has as many active blocks, within one.

A row is an output block. Its equal share makes rows equal work, and keeps every output connected.
Source: SRigL, Lasby et al. 2023 (Dynamic Sparse Training with Structured Sparsity), whose rows
are neurons and whose blocks are weights. Blocks are counted in groups, which are single
blocks, or with taps="all" the blocks of all taps.

Everything an update needs is tensor arithmetic of fixed shapes: nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_engine.sparsity.drop_and_grow import by_group, check
from sparse_kernels import BlockLayout
from sparse_kernels.layout import block_grid, group_size
from sparse_kernels.operators.reference import block_norms


def fill_rows(kept: Tensor, grow: Tensor, active: int) -> Tensor:
    """Choose groups so that all rows have equally many, within one.

    A row takes the groups that it keeps, the best first, and then grows the best of the others.
    Where `active` is no multiple of the rows, those have one more whose next group is the best:
    first groups that are kept, by their score, then others by theirs.

    Args:
        kept: scores [OB, L] of what is to be kept, -inf for all others.
        grow: scores [OB, L] of the others.
        active: groups in all.

    Returns:
        The choice, bool [OB, L], exactly `active` true.
    """
    rows, width = kept.shape
    order = _best_first(kept, grow)
    share, more = divmod(active, rows)
    following = order[:, min(share, width - 1), None]
    next_kept, next_grow = (scores.gather(1, following)[:, 0] for scores in (kept, grow))
    has_more = _places(_best_first(next_kept, next_grow)) < more
    return _places(order) < (share + has_more)[:, None]


def select_rows(
    layout: BlockLayout,
    drop_score: Tensor,
    grow_score: Tensor,
    drop: int,
    grow: int,
    norm: str = "l1",
) -> tuple[Tensor, Tensor]:
    """Choose which slots change and which blocks they get, with constant fan-in afterwards.

    Drop as select_swap, over the whole layer; then what rows have too much goes as well, and
    every row grows to its share. Arguments as of select_swap.

    Returns:
        slots [Z] and the new block ids that go into them, as select_swap. How many slots change
        is known to the device alone: those at the end repeat the first.
    """
    ids, total, rows = layout.group_ids.long(), layout.total // layout.group, layout.grid[0]
    active = layout.active // layout.group - drop + grow
    drop_score = by_group(drop_score, layout, norm)
    growth = by_group(grow_score, layout, norm).view(rows, -1)
    unused = ids >= total
    freed = drop_score.masked_fill(unused, torch.inf).topk(drop, largest=False).indices
    survives = (~unused).index_fill(0, freed, False)
    kept = drop_score.new_full((total + 1,), -torch.inf)
    kept[ids] = drop_score.masked_fill(~survives, -torch.inf)
    kept = kept[:-1].view(rows, -1)
    chosen = fill_rows(kept, growth, active).flatten()
    stays = survives & chosen[ids.clamp(max=total - 1)]
    numbers = torch.arange(total, device=ids.device)
    grown = numbers.where(chosen & (kept.flatten() == -torch.inf), total).sort().values
    changed = (~stays).int().argsort(descending=True, stable=True)
    is_change = torch.arange(len(ids), device=ids.device) < (~stays).sum()
    slots = changed.where(is_change, changed[0])
    new_ids = grown[: len(ids)].where(is_change, grown[0])
    return layout.expand_groups(slots), layout.expand_groups(new_ids)


def constant_mask(scores: Tensor, rows: int, active: int) -> Tensor:
    """Return the groups [G] of a layer with the best scores, `active` of them, equally by row."""
    grow = scores.view(rows, -1)
    return fill_rows(torch.full_like(grow, -torch.inf), grow, active).flatten()


def constant_layout(
    shape: Sequence[int],
    block: tuple[int, int],
    active: int,
    taps: str = "each",
    weight: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> BlockLayout:
    """Return a layout of constant fan-in: random blocks, or those of a weight with the largest L1.

    Args:
        shape: (O, C[, R, S]).
        block: (BO, BC), clamped.
        active: blocks.
        taps: "each" or "all".
        weight: dense; without one, or on the meta device, blocks are drawn.
        generator: of the draws.
    """
    grid, group = block_grid(shape, block), group_size(shape, taps)
    if weight is None or weight.is_meta:
        device = "cpu" if generator is None else generator.device
        size = grid[0] * grid[1] * grid[2] * grid[3] // group
        scores = torch.rand(size, generator=generator, device=device).cpu()
    else:
        sizes = (*shape, 1, 1)[:4] + tuple(block)
        norms = block_norms(weight.detach().float().reshape(sizes[:4]), sizes)
        scores = norms.view(-1, group).sum(1)
    mask = constant_mask(scores, grid[0], active // group).repeat_interleave(group)
    return BlockLayout(shape, block, mask.nonzero().flatten(), taps=taps)


def assert_constant(layout: BlockLayout) -> None:
    """Check that rows differ by one group at most; see check."""
    counts = layout.mask().flatten(1).sum(1)
    spread = counts.amax() - counts.amin()
    check(spread <= layout.group, "the fan-in of rows differs by more than one")


def _best_first(first: Tensor, second: Tensor) -> Tensor:
    """Return places along the last dimension by `first`, ties by `second`, the largest first."""
    order = second.argsort(dim=-1, descending=True, stable=True)
    again = first.gather(-1, order).argsort(dim=-1, descending=True, stable=True)
    return order.gather(-1, again)


def _places(order: Tensor) -> Tensor:
    """Return at which place of an order each element is."""
    numbers = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, numbers)
