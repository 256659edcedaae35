"""The processes that train one network, and what a topology update sends between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from sparse_engine.errors import InputError, RunFailure

# None: the default group, if there is one of several processes; False: a model for each process.
Group = dist.ProcessGroup | Literal[False] | None


class Processes(Protocol):
    """What an update asks of the processes that train a network together."""

    size: int

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        ...

    def check_equal(self, found: Mapping[str, Tensor], what: str) -> None:
        """Raise RunFailure unless the numbers are the same everywhere."""


class _OneProcess:
    """A process that trains by itself."""

    size = 1

    def mean(self, x: Tensor) -> Tensor:
        """Return the tensor."""
        return x

    def check_equal(self, found: Mapping[str, Tensor], what: str) -> None:
        """Compare with nobody."""


ONE_PROCESS = _OneProcess()


class ProcessesOfGroup:
    """The processes of a group of torch.distributed; every call is made by all of them."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Be those of a group, the default one unless given."""
        self._group, self.size = group, dist.get_world_size(group)

    def sum_(self, x: Tensor) -> Tensor:
        """Add up a tensor over the processes, in place."""
        dist.all_reduce(x, group=self._group)
        return x

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        return self.sum_(x.contiguous()).div_(self.size)

    def send_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the numbers that they have in the first process, in place."""
        for tensor in tensors:
            dist.broadcast(tensor.detach(), group=self._group, group_src=0)

    def check_same(self, description: object) -> None:
        """Raise InputError unless all processes describe their networks alike."""
        found: list[object] = [None] * self.size
        dist.all_gather_object(found, description, group=self._group)
        if any(other != found[0] for other in found):
            raise InputError(
                "the processes have different networks or arguments: make the same in each, or say "
                "process_group=False for models that train by themselves"
            )

    def check_equal(self, found: Mapping[str, Tensor], what: str) -> None:
        """Raise RunFailure unless the numbers are the same everywhere.

        On a GPU the check runs there, without a wait, and a difference ends the process.
        """
        numbers = torch.stack(list(found.values()))
        ends = torch.cat([numbers, -numbers])
        dist.all_reduce(ends, dist.ReduceOp.MAX, group=self._group)
        different = ends[: len(numbers)] != -ends[len(numbers) :]
        if numbers.is_cuda:
            torch._assert_async(~different.any(), f"{what} differ between processes")
        elif different.any():
            name = list(found)[int(different.int().argmax())]
            raise RunFailure(
                f"{what} of layer {name} differ between processes: their weights or gradients were "
                "not the same; start all from one state, and average gradients before each step"
            )


def processes_of(group: Group) -> Processes:
    """Return the processes of a group as DynamicSparsity takes it.

    Raises:
        InputError: this process is not in the group.
    """
    if group is False or not (dist.is_available() and dist.is_initialized()):
        if isinstance(group, dist.ProcessGroup):
            raise InputError("process_group is of a torch.distributed that has been shut down")
        return ONE_PROCESS
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise InputError(
            f"process_group must be None, False or a group that this process is in, found {group!r}"
        )
    if dist.get_world_size(group) == 1:
        return ONE_PROCESS
    return ProcessesOfGroup(group)
