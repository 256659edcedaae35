"""Values that FSDP2 (`torch.distributed.fsdp.fully_shard`) has cut up among processes, by slots.

Outside of forward and backward a parameter is then a DTensor, of which every process holds some
rows of the first dimension; inside, FSDP2 puts the whole one in its place. What has a row a slot
is cut up as the values are: their gradient, and what an optimizer keeps of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import InputError


def is_sharded(x: Any) -> bool:
    """Return whether a tensor is a DTensor; told without importing that class."""
    return hasattr(x, "device_mesh") and hasattr(x, "placements")


def own_part(x: Tensor) -> Tensor:
    """Return the rows of a tensor that this process holds, without a copy; all of a whole one."""
    return x.detach().to_local() if is_sharded(x) else x  # type: ignore[attr-defined]


def own_rows(like: Tensor) -> slice:
    """Return which rows of a tensor this process holds.

    Raises:
        InputError: it is cut up in another way than FSDP2 does.
    """
    if not is_sharded(like):
        return slice(0, len(like))
    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    dims = [d for d, placement in enumerate(placements) if not placement.is_replicate()]
    if not dims:
        return slice(0, len(like))
    if reason := why_not_by_slots(like):
        raise InputError(f"a sparse layer's tensors must be cut up by rows: {reason}")
    (dim,) = dims
    size = -(-len(like) // mesh.size(dim))  # as torch.chunk cuts: the last may have less, or none
    first = min(len(like), mesh.get_local_rank(dim) * size)
    return slice(first, min(len(like), first + size))


def all_rows(part: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor of which every process has the rows that it holds of another.

    Args:
        part: [rows of this process, ...].
        like: [Z, ...]; where it is whole, so is the part, and nothing is sent.
    """
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    shape = torch.Size([len(like), *part.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    whole = DTensor.from_local(part, mesh, placements, shape=shape, stride=stride).full_tensor()
    return whole.wait() if hasattr(whole, "wait") else whole


@torch.no_grad()
def write_(parameter: Tensor, whole: Tensor) -> None:
    """Give a parameter the numbers of a whole tensor; of a sharded one the rows of this process."""
    own_part(parameter).copy_(whole[own_rows(parameter)])


def why_not_by_slots(values: Tensor) -> str | None:
    """Return why a tensor is not cut up as FSDP2 does, by rows; None if it is, or whole."""
    if not is_sharded(values):
        return None
    placements = values.placements  # type: ignore[attr-defined]
    *outer, last = placements
    kind = type(last).__name__
    if all(type(p).__name__ == "Replicate" for p in outer) and kind == "Shard" and last.dim == 0:
        return None
    placed = ", ".join(map(str, placements))
    return f"a DTensor placed as {placed}, as by tensor parallelism"


def modules_of_kind(model: nn.Module, name: str) -> list[Any]:
    """Return the modules of a model whose class, or one it inherits from, has a name.

    "FSDPModule": those that fully_shard was called with; "FullyShardedDataParallel": FSDP1's.
    """
    kinds = ((module, type(module).__mro__) for module in model.modules())
    return [m for m, kind in kinds if any(k.__name__ == name for k in kind)]


def kind_of(module: nn.Module) -> type:
    """Return a module's class, the one that it had before fully_shard made another from it."""
    kind = type(module)
    others = [base for base in kind.__bases__ if base.__name__ != "FSDPModule"]
    return others[0] if others and len(others) < len(kind.__bases__) else kind


def check_whole(values: Tensor, layer: nn.Module) -> None:
    """Raise InputError if no process has all values of a layer now."""
    if is_sharded(values):
        raise InputError(
            f"the weight of a {kind_of(layer).__name__} is not whole here, as its values are cut "
            "up among processes (FSDP2): read it within forward, or between model.unshard() and "
            "model.reshard(); change layers, and load dense weights, before fully_shard"
        )
