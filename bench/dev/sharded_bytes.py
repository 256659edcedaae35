"""Bytes that a process holds and sends under FSDP2, dense and sparse.

    torchrun --nproc-per-node 2 -m bench.dev.sharded_bytes --networks resnet18 --sparsities 0.8 0.9

Counted, not timed: what one process holds after a step of AdamW (its part of parameters, gradients
and state, and the lists of blocks, which every process has whole), and what it hands to collectives
in a usual step and in one with an update of RigL. A process sends (n - 1) / n of what it gathers
and of what it reduces, and twice that of what is reduced for all, as rings do.
"""

import argparse
import io
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.dev.harness import print_table
from sparse_engine import DynamicSparsity, sparsify
from sparse_engine.models.build import build_model
from sparse_engine.shards import own_part

COLUMNS = ("network", "sparsity", "held", "lists", "sent in a step", "sent with an update")
FLAGS = {"networks": ["resnet18"], "sparsities": [0.0, 0.8, 0.9], "block": 32, "batch": 2}
INTERVAL = 3
# How often a collective sends its whole tensor, but for the part that stays; by operators' names.
PASSES = {
    "_allgather_base_": 1,
    "all_gather_into_tensor": 1,
    "_reduce_scatter_base_": 1,
    "allreduce_": 2,
    "broadcast_": 1,
}


class Sent(TorchDispatchMode):
    """Adds up the bytes that a process sends while it is active."""

    def __init__(self, processes: int) -> None:
        super().__init__()
        self._processes, self.bytes = processes, 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in PASSES:
            largest = max(t.nbytes for t in tree_leaves((args, result)) if isinstance(t, Tensor))
            self.bytes += PASSES[name] * largest * (self._processes - 1) / self._processes
        return result


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each network and sparsity; 0 is the dense network."""
    for network in options.networks:
        for sparsity in options.sparsities:
            torch.manual_seed(0)
            model = build_model(network, classes=10, channels=3, height=32, width=32)
            if sparsity:
                sparsify(model, sparsity, "uniform", (options.block, options.block))
            counts = counted(model, torch.randn(options.batch, 3, 32, 32))
            yield [network, f"{sparsity:g}", *(f"{count / 1e6:.3f} MB" for count in counts)]


def counted(model: nn.Module, images: Tensor) -> tuple[float, float, float, float]:
    """Return what this process holds of a model and of its lists, and sends in the two steps.

    Args:
        model: with blocks or without, not cut up yet; it is by this, each child by itself.
        images: of this process.
    """
    for part in (*model.children(), model):
        if any(True for _ in part.parameters()):
            fully_shard(part)
    optimizer = torch.optim.AdamW(model.parameters())
    layers = [m for m in model.modules() if hasattr(m, "block_ids")]
    dynamic = DynamicSparsity(model, optimizer, interval=INTERVAL) if layers else None
    sent, held = [], 0
    for _ in range(INTERVAL):
        with Sent(dist.get_world_size()) as count:
            F.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.long)).backward()
            optimizer.step()
            held = _held(model, optimizer)
            optimizer.zero_grad()
            if dynamic is not None:
                dynamic.step()
        sent.append(count.bytes)
    return held, sum(m.index_bytes for m in layers), sent[1], sent[-1]


def _held(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of this process's part of parameters, gradients and state."""
    parameters = list(model.parameters())
    state = tree_leaves([list(optimizer.state[p].values()) for p in parameters])
    tensors = [*parameters, *(p.grad for p in parameters if p.grad is not None), *state]
    return sum(own_part(t).nbytes for t in tensors if t.ndim)


def main() -> None:
    """Print the table of the first process."""
    dist.init_process_group("gloo")
    with nullcontext() if dist.get_rank() == 0 else redirect_stdout(io.StringIO()):
        print_table(__doc__, COLUMNS, rows, FLAGS)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
