"""Block ids in DistributedDataParallel: what it sends by itself, and what it leaves to us.

It always sends process 0's parameters when it is built, but buffers only if it is to keep them
equal; and it says nothing to the layers, which see it first in their first forward.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

_met: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()


def newly_met() -> DistributedDataParallel | None:
    """Return the wrapper whose forward this is, if it is its first."""
    parallel = DistributedDataParallel._active_ddp_module
    if parallel is None or parallel in _met:
        return None
    _met.add(parallel)
    return parallel


def send_ids_(ids: Sequence[Tensor], parallel: DistributedDataParallel) -> None:
    """Make ids those of process 0, whose values all processes have, unless that is done.

    All processes must call it, each with the ids of all layers in one order.
    """
    if parallel.broadcast_buffers or not ids:
        return
    sent = torch.cat(list(ids))
    dist.broadcast(sent, group=parallel.process_group, group_src=0)
    with torch.no_grad():
        for own, new in zip(ids, sent.split([len(part) for part in ids])):
            own.copy_(new)


def is_sent() -> bool:
    """Return whether the forward is that of a wrapper which sends its buffers."""
    parallel = DistributedDataParallel._active_ddp_module
    return parallel is not None and parallel.broadcast_buffers
