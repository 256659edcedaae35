"""BlockKinds: how many real weights blocks hold where they do not divide a layer's channels.

A last block that reaches past the channels is ragged: it holds fewer weights than the others. So
blocks are of up to four kinds: whole, ragged in inputs, ragged in outputs, ragged in both. Where a
dimension is divided by its block, or has a single one, all blocks are alike in it. Each kind has a
count of its own, in proportion to how many of its blocks there are, and blocks are chosen within
their kind: then no channel starves because its block is small, and how many real weights are
active is known without asking the device.

All counts are of groups: single blocks, or blocks that come and go together: with taps="row" those
of a row of a kernel, with taps="all" those of all taps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

Counts = tuple[int, ...]
# Along one dimension: how many blocks there are, and the real channels of each.
Parts = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class BlockKinds:
    """The kinds of blocks of one weight, numbered as in the sentence above, those that it has.

    out_parts, in_parts: of the outputs and inputs, the whole blocks and then the ragged one.
    places: groups of a pair of channel blocks; group: T, the blocks of a group.
    """

    out_parts: Parts
    in_parts: Parts
    places: int = 1
    group: int = 1

    @classmethod
    def of(cls, shape: Sequence[int], block: Sequence[int], group: int = 1) -> BlockKinds:
        """Return the kinds of a weight (O, C[, R, S]) in blocks (BO, BC), clamped to it."""
        taps = shape[2] * shape[3] if len(shape) == 4 else 1
        return cls(_parts(shape[0], block[0]), _parts(shape[1], block[1]), taps // group, group)

    @property
    def groups(self) -> Counts:
        """How many groups there are of each kind."""
        return tuple(o * i * self.places for o, _ in self.out_parts for i, _ in self.in_parts)

    @property
    def weights(self) -> Counts:
        """Real weights in one group of each kind."""
        return tuple(o * i * self.group for _, o in self.out_parts for _, i in self.in_parts)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks: (OB, CB)."""
        return sum(n for n, _ in self.out_parts), sum(n for n, _ in self.in_parts)

    @property
    def areas(self) -> tuple[tuple[slice, slice], ...]:
        """The rows and the columns in which the blocks of each kind lie."""
        return tuple((o, i) for o in _spans(self.out_parts) for i in _spans(self.in_parts))

    def split(self, count: Any) -> tuple[Any, ...]:
        """Return how many of `count` groups (a number or a numpy array) are of each kind.

        First outputs share in proportion, then inputs within them, rounded to the nearest. With one
        group more in all, one kind has one more and no kind has less.
        """
        shares = _share(count, self.out_parts)
        return tuple(part for share in shares for part in _share(share, self.in_parts))

    def fit(self, count: int, least: Sequence[int], most: Sequence[int]) -> Counts:
        """Return the counts next to split(count) that are between bounds and sum to `count`."""
        return within(self.split(count), count, least, most)

    def weights_of(self, counts: Sequence[Any]) -> Any:
        """Return the real weights of so many groups of each kind."""
        return sum(count * size for count, size in zip(counts, self.weights, strict=True))

    def weights_in(self, count: Any) -> Any:
        """Return the real weights of `count` groups, split over the kinds."""
        return self.weights_of(self.split(count))

    def groups_at(self, density: float) -> float:
        """Return how many groups have so large a share of the weights; the last may be a part."""
        total = sum(self.groups)
        if len(self.groups) == 1:
            return density * total
        wanted = density * self.weights_of(self.groups)
        after = bisect_left(range(total), wanted, lo=1, key=self.weights_in)
        below, above = self.weights_in(after - 1), self.weights_in(after)
        return after - 1 + (wanted - below) / (above - below)

    def of_groups(self, group_ids: Tensor) -> Tensor:
        """Return the kind of each group by id [N]; the number of kinds for an unused one."""
        out_blocks, in_blocks = self.grid
        pair = group_ids // self.places
        kind = torch.zeros_like(pair)
        if len(self.out_parts) > 1:
            kind = kind + (pair // in_blocks == out_blocks - 1) * len(self.in_parts)
        if len(self.in_parts) > 1:
            kind = kind + (pair % in_blocks == in_blocks - 1)
        unused = group_ids >= out_blocks * in_blocks * self.places
        return kind.masked_fill(unused, len(self.groups))

    def count(self, group_ids: Tensor) -> Counts:
        """Return how many of some groups [N] are of each kind; waits for the device."""
        kinds = self.of_groups(group_ids.long())
        return tuple(torch.bincount(kinds, minlength=len(self.groups) + 1).tolist()[:-1])

    def top(
        self,
        scores: Tensor,
        counts: Sequence[int],
        group_ids: Tensor | None = None,
        largest: bool = True,
    ) -> Tensor:
        """Return the places [sum of counts] of the highest scores, so many of each kind.

        Args:
            scores: [N].
            counts: of each kind; or a single one, of all kinds taken together.
            group_ids: [N], of what is scored; all groups in order unless given.
            largest: False for the lowest.
        """
        if len(counts) == 1:
            return scores.topk(counts[0], largest=largest).indices
        if group_ids is None:
            group_ids = torch.arange(len(scores), device=scores.device)
        kinds, last = self.of_groups(group_ids), -torch.inf if largest else torch.inf
        return torch.cat(
            [
                scores.masked_fill(kinds != kind, last).topk(count, largest=largest).indices
                for kind, count in enumerate(counts)
            ]
        )


def within(counts: Sequence[int], total: int, least: Sequence[int], most: Sequence[int]) -> Counts:
    """Return counts between bounds that sum to `total`; the first are changed first."""
    found = [min(max(n, low), high) for n, low, high in zip(counts, least, most, strict=True)]
    left = total - sum(found)
    for kind, (low, high) in enumerate(zip(least, most)):
        change = min(max(left, low - found[kind]), high - found[kind])
        found[kind] += change
        left -= change
    return tuple(found)


def _parts(channels: int, width: int) -> Parts:
    blocks = -(-channels // width)
    last = channels - (blocks - 1) * width
    return ((blocks, last),) if blocks == 1 or last == width else ((blocks - 1, width), (1, last))


def _spans(parts: Parts) -> list[slice]:
    ends = list(accumulate(blocks for blocks, _ in parts))
    return [slice(start, end) for start, end in zip([0, *ends], ends)]


def _share(count: Any, parts: Parts) -> tuple[Any, ...]:
    """Return how many of `count` fall to each part; a half goes to the whole blocks."""
    if len(parts) == 1:
        return (count,)
    (whole, _), (ragged, _) = parts
    both = whole + ragged
    last = (2 * count * ragged + both - 1) // (2 * both)
    return count - last, last
