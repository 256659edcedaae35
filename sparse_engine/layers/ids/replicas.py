"""Block ids in DistributedDataParallel: what it sends by itself, and what it leaves to us.

When it is built it sends process 0's parameters, and most often its buffers (not with
broadcast_buffers=False). The layers hear nothing of it: they see it in its first forward.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparse_engine.errors import InputError

_met: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()


def newly_met() -> DistributedDataParallel | None:
    """Return the wrapper whose forward this is, if it is its first."""
    parallel = DistributedDataParallel._active_ddp_module
    if parallel is None or parallel in _met:
        return None
    _met.add(parallel)
    return parallel


@torch.no_grad()
def send_ids_(ids: Iterable[Tensor], parallel: DistributedDataParallel) -> None:
    """Make ids those of process 0, whose values all processes have.

    All processes must call it, each with the ids of all layers in one order.
    """
    for own in ids:
        dist.broadcast(own, group=parallel.process_group, group_src=0)


def is_sent() -> bool:
    """Return whether the forward is that of a wrapper which sends its buffers."""
    parallel = DistributedDataParallel._active_ddp_module
    return parallel is not None and parallel.broadcast_buffers


def refuse_early_ends(layers: Iterable[nn.Module]) -> None:
    """Raise InputError if a wrapper of the layers is told that processes run out of batches.

    In DistributedDataParallel.join() a process that has no batch left answers what the wrappers of
    others send, and nothing else: what a topology update sends would be taken for gradients.
    """
    ending = [parallel for parallel in _met if _ends_early(parallel)]
    if not ending:
        return
    own = set(layers)
    if any(module in own for parallel in ending for module in parallel.modules()):
        raise InputError(
            "topology cannot be updated within DistributedDataParallel.join(), for which processes "
            "may have ended: give all of them as many batches (DistributedSampler does, and "
            "even_batches of Accelerate), or join with throw_on_early_termination=True"
        )


def _ends_early(parallel: DistributedDataParallel) -> bool:
    config = parallel._join_config
    return config.enable and not config.throw_on_early_termination
