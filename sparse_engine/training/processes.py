"""The processes of a run, as torchrun starts them; a single one sends nothing.

Batches are shared out, gradients are averaged by DistributedDataParallel, and everything that
decides (topology, schedules, checkpoints) is computed alike by all, from numbers that are equal.
Only the first process touches the run folder.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparse_engine.config.config import Dtype
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.evaluation.predict import predict
from sparse_engine.models.members import training_pair

T = TypeVar("T")


class DistributedContext:
    """What the processes of a run say to each other; each call is made by all of them."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        """Describe this process; the process group exists if there are several."""
        self.rank, self.size, self.local_rank = rank, size, local_rank
        # Dense gradients are sent within backward, beside those of DDP; flags without the device.
        self._scores = dist.new_group() if size > 1 else None
        self._control = dist.new_group(backend="gloo") if size > 1 else None

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """Return which images of a batch are this process's."""
        own = batch // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        if self.size > 1:
            dist.all_reduce(x, group=self._scores)
            x /= self.size
        return x

    def any(self, flag: bool) -> bool:
        """Return whether any process says so."""
        if self.size == 1:
            return flag
        flags = torch.tensor(flag, dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._control)
        return bool(flags)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def from_first(self, compute: Callable[[], T]) -> T:
        """Return what the first process computes, in all processes the same."""
        return self.gather(compute() if self.is_first else None)[0]

    def share_buffers(self, model: nn.Module) -> None:
        """Give all the first process's buffers: batch-norm statistics are of one's own images."""
        for buffer in model.buffers() if self.size > 1 else ():
            dist.broadcast(buffer, 0, group=self._scores)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let the first process do something before the others, which then find it done."""
        if not self.is_first:
            self.gather(None)
        yield
        if self.is_first:
            self.gather(None)

    def check_equal(self, found: Mapping[str, Tensor], what: str) -> None:
        """Raise RunFailure unless numbers by layer are the same everywhere; waits for a GPU."""
        own = {name: int(number) for name, number in found.items()}
        others = self.gather(own)
        for name, value in own.items():
            if any(other[name] != value for other in others):
                raise RunFailure(
                    f"{what} of layer {name} differ between processes; "
                    "--resume continues from the last checkpoint"
                )

    def close(self) -> None:
        """Let go of the groups, whose threads end with them, whoever holds this context.

        A thread that still frees one of Python's tensors while Python ends aborts the process.
        DistributedDataParallel may hold the default group longer, which is never the last to send.
        """
        self._scores = self._control = None

    def parallel(self, model: nn.Module) -> DistributedDataParallel:
        """Return training_pair of a model as a module whose backward averages the gradients."""
        devices = [self.local_rank] if next(model.parameters()).is_cuda else None
        return DistributedDataParallel(_Pair(model), device_ids=devices)


SINGLE_PROCESS = DistributedContext()


class _Pair(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return training_pair(self.model, x, y)


@contextmanager
def process_group(timeout: float, cuda: bool) -> Iterator[DistributedContext]:
    """Join the processes that torchrun has started; alone, be SINGLE_PROCESS.

    Args:
        timeout: seconds that one waits for another.
        cuda: whether each has a GPU.

    Raises:
        RunFailure: another process has ended or does not answer.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE_PROCESS
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"{local_rank + 1} processes or more here, found {torch.cuda.device_count()} GPUs; "
                "use a smaller --nproc-per-node"
            )
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    with failing_together(rank):
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        try:
            with closing(DistributedContext(rank, size, local_rank)) as world:
                yield world
        finally:
            dist.destroy_process_group()


@contextmanager
def failing_together(rank: int) -> Iterator[None]:
    """Turn an error of communication into a RunFailure."""
    try:
        yield
    except RunFailure:
        raise
    except RuntimeError as error:
        words = str(error)
        if not isinstance(error, dist.DistError) and not any(
            sign in words for sign in ("gloo", "NCCL", "Connection", "Timed out", "timed out")
        ):
            raise
        raise RunFailure(
            f"process {rank} cannot reach another, which has ended or does not answer "
            f"({words.splitlines()[0]}); --resume continues from the last checkpoint"
        ) from None


def predict_together(
    model: nn.Module, split_batches: Iterator, dtype: Dtype, world: DistributedContext
) -> tuple[Tensor, Tensor]:
    """Return what predict does; the processes of a run share the batches."""
    if world.size == 1:
        return predict(model, split_batches, dtype)
    own = islice(split_batches, world.rank, None, world.size)
    parts = [predict(model, iter([batch]), dtype) for batch in own]
    logs, labels = zip(*merged(world.gather(parts)), strict=True)
    return torch.cat(logs), torch.cat(labels)


def merged(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Undo dealing out: parts[r][i] is element i * len(parts) + r."""
    longest = max(map(len, parts), default=0)
    return [part[i] for i in range(longest) for part in parts if i < len(part)]
