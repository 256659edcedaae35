"""Coverage: updates spare a channel's last block, and grow one where there is none.

The blocks of a weight form a grid: in a row lie those of the same output channels, in a column
those of the same input channels. Output channels whose row is empty are constants, and input
channels whose column is empty are never read. In a layer of few blocks that happens often, and what
is empty tends to stay so: nothing downstream reads a constant, so no gradient asks for it.
Here the strongest block of each row and of each column is the last to be dropped, and empty rows
and columns are the first to grow. What it gains: docs/results/full-length.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_kernels import BlockLayout


def dropped_last(layout: BlockLayout, strengths: Tensor, ids: Tensor) -> Tensor:
    """Return strengths in which the strongest of each row and column are above all others.

    Args:
        layout: before the update.
        strengths: [Z / T], of the slots, a group of T blocks each.
        ids: int64 [Z / T], the slots' groups; an unused slot has one that does not exist.
    """
    total = layout.total // layout.group
    ids = ids.clamp(max=total)
    in_grid = strengths.new_full((total + 1,), -torch.inf).index_copy(0, ids, strengths)[:-1]
    of_rows, of_columns = _best(layout, in_grid)
    best = F.pad((of_rows | of_columns).flatten(), (0, 1)).index_select(0, ids)
    return torch.where(best, strengths + strengths.amax() + 1, strengths)


def grown_first(layout: BlockLayout, scores: Tensor, kept: Tensor) -> Tensor:
    """Return scores in which the best of each empty row and column are above all others.

    A group without any score is not: a pixel that is always black needs no weights, and a block,
    which starts at zero, does not wake a channel whose ReLU lets no gradient through.

    Args:
        layout: before the update.
        scores: of growth [groups], not negative; -inf where a group is kept.
        kept: bool [groups], what the drop has left.
    """
    of_rows, of_columns = _best(layout, scores)
    grid = kept.view(of_rows.shape)
    empty_rows = ~grid.flatten(1).any(1)[:, None, None]
    empty_columns = ~grid.transpose(0, 1).flatten(1).any(1)[:, None]
    best = (of_rows & empty_rows) | (of_columns & empty_columns)
    highest = scores.masked_fill(kept, 0).amax()
    return torch.where(best.flatten() & (scores > 0), scores + highest, scores)


def _best(layout: BlockLayout, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return which groups are the best of their row and of their column, bool [OB, CB, places]."""
    rows, columns = layout.grid[:2]
    grid = scores.view(rows, columns, -1)
    of_columns = _highest(grid.transpose(0, 1).flatten(1)).view(columns, rows, -1)
    return _highest(grid.flatten(1)).view_as(grid), of_columns.transpose(0, 1)


def _highest(scores: Tensor) -> Tensor:
    """Return what is the highest of its row, bool like scores [N, K]."""
    highest = torch.zeros_like(scores, dtype=torch.bool)
    return highest.scatter_(1, scores.argmax(1, keepdim=True), True)
