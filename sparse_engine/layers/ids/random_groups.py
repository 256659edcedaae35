"""Random groups of blocks for a layer's start, such that every channel has one.

Blocks lie in a grid: in a row those of the same output channels, in a column those of the same
input channels. Where a uniform draw leaves a row empty, its outputs are constants from the start:
behind a batch norm and a ReLU no gradient reaches them, and no update of the topology wakes them.
Layers of few blocks often begin so: 14 to 19 of a ResNet-50's, 90 % sparse in 32x32 blocks (ERK,
three seeds). A draw that leaves a row or a column empty therefore gives way to one that has a group
in each first.
"""

import torch
from torch import Tensor

from sparse_kernels.block_kinds import BlockKinds, Counts


def random_groups(
    kinds: BlockKinds, counts: Counts, generator: torch.Generator | None = None
) -> Tensor:
    """Return the ids of groups, so many of each kind: int64, in rising order, on the CPU.

    Uniform where such a draw has a group in every row and column of blocks; else as many rows and
    columns have one as the counts go round.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    order = torch.randperm(sum(kinds.groups), generator=generator, device=device).cpu()
    groups = _first(order, kinds, counts)
    # Subclasses of Tensor (fake ones) have no numbers to look at.
    if type(order) is Tensor and not _reach_all(groups, kinds):
        groups = _first(_spread(order, kinds, counts), kinds, counts)
    return groups.sort().values


def _first(order: Tensor, kinds: BlockKinds, counts: Counts) -> Tensor:
    """Return of each kind the first in an order [groups], as many as it has."""
    own = kinds.of_groups(order)
    # A stable sort brings those of a kind to the front.
    places = [(own != kind).sort(stable=True).indices[:n] for kind, n in enumerate(counts)]
    return order[torch.cat(places)]


def _reach_all(groups: Tensor, kinds: BlockKinds) -> bool:
    """Return whether every row and every column has one of these groups."""
    rows, columns = kinds.grid
    pairs = groups // kinds.places
    return len((pairs // columns).unique()) == rows and len((pairs % columns).unique()) == columns


def _spread(order: Tensor, kinds: BlockKinds, counts: Counts) -> Tensor:
    """Return an order that begins with a group in each row and column, as far as counts go round.

    Rows meet columns in turn, the shorter side again from its start, so no fewer groups would do.
    Kinds of few blocks come first: the others see what is reached. Among equals what is earlier in
    the given order is earlier here.
    """
    rows, columns = kinds.grid
    places = order.argsort().view(rows, columns, kinds.places)
    earliest = places.amin(2)
    empty_rows, empty_columns = (torch.ones(n, dtype=torch.bool, device="cpu") for n in kinds.grid)
    spread = []
    for count, (of_rows, of_columns) in reversed(list(zip(counts, kinds.areas, strict=True))):
        area = earliest[of_rows, of_columns]
        row, missing_rows = _empty_first(area.amin(1), empty_rows[of_rows])
        column, missing_columns = _empty_first(area.amin(0), empty_columns[of_columns])
        most = max(missing_rows, missing_columns)
        turns = torch.arange(min(count, most), device="cpu")
        row = row[turns % len(row)] + of_rows.start
        column = column[turns % len(column)] + of_columns.start
        empty_rows[row] = empty_columns[column] = False
        pairs = row * columns + column
        spread.append(pairs * kinds.places + places[row, column].argmin(1))
    first = torch.cat(spread)
    return torch.cat([first, order[~torch.isin(order, first)]])


def _empty_first(earliest: Tensor, empty: Tensor) -> tuple[Tensor, int]:
    """Return lines by how early they come in the order, empty ones before others, and how many."""
    by_order = earliest.argsort()
    return by_order[(~empty[by_order]).sort(stable=True).indices], int(empty.sum())
