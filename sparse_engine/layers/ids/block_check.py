"""Signs made of block ids, kept beside them: what averages state dicts leaves a mark in them.

The mean of two networks' `values`, slot by slot, means nothing where their slots hold different
blocks. Code that averages state dicts (soups, federated averaging) leaves integers such as
`block_ids` as they are, or cuts their means to integers; but it averages floats. So the bits of a
hash of the ids are kept as 32 floats of +1 and -1, exact in every dtype: where two networks with
different blocks were averaged, half of them are neither.
"""

import torch
from torch import Tensor

SIGNS = 32
TOLERANCE = 0.02  # what rounding to 16 bits may change, or an average that has all but forgotten

AVERAGED = (
    "these are means of networks with different blocks, slot by slot; average "
    "dense_state_dict(model) of each instead, or name averages in DynamicSparsity(averages=[...])"
)


def block_signs(block_ids: Tensor) -> Tensor:
    """Return the signs of ids [Z] in their order, float32 [32] on their device; without a wait."""
    places = torch.arange(1, len(block_ids) + 1, device=block_ids.device)
    mixed = ((block_ids.long() + 1) * (places * 2_654_435_761 % 2_147_483_629)).sum()
    bits = (mixed * 0x9E3779B97F4A7C1) >> torch.arange(24, 24 + SIGNS, device=mixed.device)
    return 2 * (bits & 1).float() - 1


def are_signs_of(signs: Tensor, block_ids: Tensor) -> bool:
    """Return whether signs [..., 32] were made of these ids, which are then no means; waits."""
    own = block_signs(block_ids)
    return signs.device == own.device and bool((signs == own).all())


def are_averaged(signs: Tensor) -> bool:
    """Return whether signs are means of different ones; waits for a GPU.

    Memory that nobody has written to, as tools leave it whose checkpoint has no signs, is no mean:
    means lie between -1 and 1, and not all of them at 0.
    """
    size = signs.float().abs()
    is_written = bool((size <= 1 + TOLERANCE).all() & (size > 1e-3).any())
    return is_written and bool(((size - 1).abs() > TOLERANCE).any())


def are_between(ids: Tensor, first: Tensor, second: Tensor) -> bool:
    """Return whether ids may be means of two, cut to integers."""
    if ids.shape != first.shape or ids.device != first.device:
        return False
    low, high = torch.minimum(first, second) - 1, torch.maximum(first, second)
    return bool(((ids >= low) & (ids <= high)).all())
