"""One layer's update: which slots get which blocks, in place, and what must hold afterwards."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from sparse_engine.layers.base import SparseLayer
from sparse_engine.shards import all_rows, is_sharded, own_part, own_rows
from sparse_engine.sparsity.coverage import dropped_last, grown_first
from sparse_kernels import BlockLayout

# Of a parameter [Z, ...], some of its slots, and unless a bool on the device is true.
ResetSlots = Callable[[Parameter, Tensor, Tensor | None], None]


def select_drop_and_grow(
    layout: BlockLayout,
    drop_score: Tensor,
    grow_score: Tensor,
    drop: int | Sequence[int],
    grow: int | Sequence[int] | None = None,
    cover: bool = False,
) -> tuple[Tensor, Tensor]:
    """Choose which slots change and which blocks they get.

    The `drop` active groups with the lowest drop score go; of all groups that are then inactive,
    just-dropped ones included, the `grow` with the highest grow score come, first into the slots
    that became free, then into unused ones. A group is one block, or with taps="row" or "all" those
    of a row of the kernel or of all its taps, whose scores are summed.

    Args:
        layout: before the update.
        drop_score: [Z].
        grow_score: [OB * CB * R * S].
        drop: groups of each kind of block (layout.kinds), at most those that are active; one number
            chooses among all kinds together.
        grow: as many numbers, of groups at most those that are free then; as drop unless said.
        cover: whether channels that would lose all blocks are spared (see coverage.py).

    Returns:
        slots [max(drop, grow) * layout.group], and the new block ids that go into them, no less
        than layout.total for those that stay empty.
    """
    drops, kinds = [drop] if isinstance(drop, int) else drop, layout.kinds
    grows = drops if grow is None else [grow] if isinstance(grow, int) else grow
    drop, grow = sum(drops), sum(grows)
    ids, total = layout.group_ids.long(), layout.total // layout.group
    drop_score = by_group(drop_score, layout)
    grow_score = by_group(grow_score, layout)
    unused = ids >= total
    if cover:
        drop_score = dropped_last(layout, drop_score, ids)
    freed = kinds.top(drop_score.masked_fill(unused, torch.inf), drops, ids, largest=False)
    kept = torch.zeros(total + 1, dtype=torch.bool, device=layout.device)
    # Filled, not assigned: a number that is assigned is copied to the device.
    kept.index_fill_(0, ids.index_fill(0, freed, total), True)
    grow_score = grow_score.masked_fill(kept[:-1], -torch.inf)
    if cover:
        grow_score = grown_first(layout, grow_score, kept[:-1])
    grown = kinds.top(grow_score, grows)
    spare = unused.int().topk(max(0, grow - drop)).indices
    slots, grown = torch.cat([freed, spare]), F.pad(grown, (0, max(0, drop - grow)), value=total)
    return layout.expand_groups(slots), layout.expand_groups(grown)


def by_group(scores: Tensor, layout: BlockLayout) -> Tensor:
    """Return the sum over each group's blocks of their scores."""
    return scores if layout.group == 1 else scores.view(-1, layout.group).sum(1)


@torch.no_grad()
def swap_blocks(
    layer: SparseLayer,
    reset: ResetSlots | None,
    slots: Tensor,
    block_ids: Tensor,
    active: int | None = None,
    stays: Tensor | None = None,
    instead: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Put other blocks into some slots, in place: values and gradients there become zero.

    Args:
        layer: its optimizers keep what they have of other slots.
        reset: gives slots the optimizer's initial state; None where there is no optimizer.
        slots: [N], those that change; block_ids: [N], what they get.
        active: blocks in use afterwards, as many as before unless said.
        stays: bool on the device: if true only `instead` is done, and nothing without it.
        instead: slots and block_ids of the same count of active blocks.
    """
    values, old = layer.values, layer.layout.block_ids
    ids, changed = _changed(old, slots, block_ids)
    if stays is not None:
        same = (old, torch.zeros_like(changed)) if instead is None else _changed(old, *instead)
        ids, changed = torch.where(stays, same[0], ids), torch.where(stays, same[1], changed)
    layer.change_blocks_(ids, active)
    changed = changed[own_rows(values), None, None]
    own_part(values).masked_fill_(changed, 0)
    if values.grad is not None:
        # Of blocks that are gone: an optimizer that steps later would move the new ones by it.
        own_part(values.grad).masked_fill_(changed, 0)
    if reset is not None:
        reset(values, slots, stays)


@torch.no_grad()
def clear_padding(layer: SparseLayer) -> None:
    """Zero the values past the weight's edge and in unused slots, which other code may write to.

    They take part in no product, but would in a block's magnitude.
    """
    outside = layer.layout.outside()
    if outside is not None:
        own_part(layer.values).masked_fill_(outside[own_rows(layer.values)], 0)


def block_strengths(layer: SparseLayer) -> Tensor:
    """Return the L1 norm of the values in each slot [Z], of those of all processes if sharded."""
    return all_rows(own_part(layer.values).abs().sum((1, 2)), layer.values)


def _changed(block_ids: Tensor, slots: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids after changes in some slots, and which slots these are, bool [Z]."""
    changed = torch.zeros_like(block_ids, dtype=torch.bool).index_fill_(0, slots, True)
    return block_ids.index_copy(0, slots, changes.to(torch.int32)), changed


def assert_invariants(layer: SparseLayer, slots: Tensor, stays: Tensor | None = None) -> None:
    """Check a layer after an update: the count of active blocks, whole groups, zeros in new ones.

    Args:
        slots: [N], those that changed; unless `stays`, a bool on the device.

    Raises:
        AssertionError: at once on a CPU; on a GPU the check runs on the device, without a sync.
    """
    layout = layer.layout
    _check(layout.mask().sum() == layout.active, "the count of active blocks changed")
    whole = layout.expand_groups(layout.group_ids).clamp(max=layout.total)
    _check((layout.block_ids == whole).all(), "a group has lost a tap")
    zero = ~_own_of(slots, layer.values).any()
    _check(zero if stays is None else zero | stays, "a grown block does not start at zero")


def _own_of(slots: Tensor, values: Tensor) -> Tensor:
    """Return the values in some slots; where they are sharded, those of this process and zeros."""
    if not is_sharded(values):
        return values.detach().index_select(0, slots)
    own = own_part(values)
    chosen = torch.zeros(len(values), dtype=torch.bool, device=own.device)
    return own.masked_fill(~chosen.index_fill_(0, slots, True)[own_rows(values), None, None], 0)


def _check(condition: Tensor, message: str) -> None:
    """Raise AssertionError, at once on a CPU, unless a condition holds; see assert_invariants."""
    if condition.is_cuda:
        torch._assert_async(condition, message)
    elif not condition:
        raise AssertionError(f"topology update: {message}")
