"""One of three processes that train networks in loops of their own, case after case.

python loop_worker.py FILE        with the environment that torchrun gives; each writes FILE.RANK
"""

import contextlib
import json
import sys
import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparse_engine import DynamicSparsity, sparsify
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.layers.base import SparseLayer

STEPS = 13


class Net(nn.Module):
    """Layers of which some may be left out in some processes."""

    def __init__(self, drops: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 32)
        self.unused, self.last = nn.Linear(32, 32), nn.Linear(32, 8)
        self.drops, self.calls = drops, 0
        self.norm = nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 16] to [N, 8]."""
        x = self.norm(self.first(x).relu())
        self.calls += 1
        if not (self.training and self.drops and self.calls % 3 == dist.get_rank()):
            x = x + self.second(x).relu()
        return self.last(x)


def network(drops: bool = False, seed: int | None = None) -> nn.Module:
    torch.manual_seed(dist.get_rank() if seed is None else seed)
    model = Net(drops)
    sparsify(model, 0.6, "uniform", (4, 4), **({"headroom": 0.25} if RULE == "snfs" else {}))
    return model


RULE = "rigl"


def masks(model: nn.Module) -> list[list[bool]]:
    layers = [m for m in model.modules() if isinstance(m, SparseLayer)]
    return [m.layout.mask().flatten().tolist() for m in layers]


def batch(step: int, size: int = 24) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 16, generator=torch.Generator().manual_seed(step))
    return x, x[:, :8].argmax(1)


def train(
    wrapped: nn.Module,
    model: nn.Module,
    dynamic: DynamicSparsity,
    optimizer,
    parts: int = 1,
    samples: int = 24,
):
    """Train on this process's share of every batch; return the blocks at the start and the end."""
    found = [masks(model)]
    rank, size = dist.get_rank(), dist.get_world_size()
    for step in range(STEPS):
        x, y = (t.chunk(size)[rank] for t in batch(step, samples))
        for number, (own_x, own_y) in enumerate(zip(x.chunk(parts), y.chunk(parts))):
            alone = number + 1 < parts
            with wrapped.no_sync() if alone else contextlib.nullcontext():
                (F.cross_entropy(wrapped(own_x), own_y) / parts).backward()
        optimizer.step()
        optimizer.zero_grad()
        dynamic.step()
    return [*found, masks(model), model.eval()(batch(99)[0]).sum().item()]


def dynamic_of(model: nn.Module, optimizer, **options) -> DynamicSparsity:
    options = {"interval": 3, "drop": 0.5, "seed": dist.get_rank(), **options}
    return DynamicSparsity(model, optimizer, RULE, **options)


def parallel(
    rule: str,
    parts: int = 1,
    drops: bool = False,
    early: bool = True,
    samples: int = 24,
    **options,
):
    """Return what a case with DistributedDataParallel gives."""
    global RULE
    RULE = rule
    model = network(drops)
    wrapped = DistributedDataParallel(model, **options) if early else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dynamic = dynamic_of(model, optimizer)
    wrapped = wrapped or DistributedDataParallel(model, **options)
    return train(wrapped, model, dynamic, optimizer, parts, samples)


def without_dynamic(**options):
    model = network()
    wrapped = DistributedDataParallel(model, **options)
    return [wrapped.eval()(batch(99)[0]).sum().item(), masks(model)]


def inside_another():
    whole = nn.ModuleDict({"net": network(), "other": nn.Linear(2, 2)})
    model = whole["net"]
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    dynamic = dynamic_of(whole, optimizer)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    return train(wrapped, model, dynamic, optimizer)


def by_hand():
    """Gradients averaged by the loop itself, in a sub-group that process 0 is not in."""
    group = dist.new_group([1, 2])
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        dynamic = dynamic_of(model, optimizer, process_group=group)
    except InputError as error:
        return [str(error)]
    found = [masks(model)]
    for step in range(STEPS):
        x, y = (t.chunk(2)[dist.get_rank() - 1] for t in batch(step))
        F.cross_entropy(model(x), y).backward()
        for p in model.parameters():
            if p.grad is not None:
                dist.all_reduce(p.grad, group=group)
                p.grad /= 2
        optimizer.step()
        optimizer.zero_grad()
        dynamic.step()
    return [*found, masks(model)]


def independent():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dynamic = dynamic_of(model, optimizer, process_group=False)
    for step in range(STEPS):
        F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        dynamic.step()
    return [masks(model)]


def different():
    """Weights that drift apart: nobody averages the gradients."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    dynamic = dynamic_of(model, optimizer)
    try:
        for step in range(STEPS):
            x, y = batch(100 * dist.get_rank() + step)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            dynamic.step()
    except RunFailure as error:
        return [str(error)]


def ending_early():
    """The first process has fewer batches: what join() is for, and what it is told to say."""
    told = []
    for options in ({}, {"throw_on_early_termination": True}):
        model = network()
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        dynamic = dynamic_of(model, optimizer)
        try:
            with wrapped.join(**options):
                for step in range(STEPS - (dist.get_rank() == 0)):
                    F.cross_entropy(wrapped(batch(step)[0]), batch(step)[1]).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    dynamic.step()
        except (InputError, RuntimeError) as error:
            told.append([str(error), dynamic.steps])
    return told


def messages():
    """Count what is sent in steps without an update, beside what DistributedDataParallel sends."""
    model = network(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dynamic, sent, send = dynamic_of(model, optimizer), [], dist.all_reduce
    dist.all_reduce = lambda *a, **k: (sent.append(dynamic.steps), send(*a, **k))[1]
    for step in range(4):
        F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        dynamic.step()
    dist.all_reduce = send
    return [sorted(set(sent))]


CASES = {
    "static": lambda: parallel("static", find_unused_parameters=True),
    "set": lambda: parallel("set", find_unused_parameters=True),
    "rigl": lambda: parallel("rigl", find_unused_parameters=True),
    "snfs": lambda: parallel("snfs", find_unused_parameters=True),
    "rigl, made late": lambda: parallel("rigl", early=False, find_unused_parameters=True),
    "rigl, buffers off": lambda: parallel(
        "rigl", broadcast_buffers=False, find_unused_parameters=True
    ),
    "rigl, static graph": lambda: parallel("rigl", static_graph=True),
    "rigl, bucket views": lambda: parallel(
        "rigl", gradient_as_bucket_view=True, find_unused_parameters=True
    ),
    "rigl, accumulated": lambda: parallel("rigl", 2, find_unused_parameters=True),
    "rigl, uneven": lambda: parallel("rigl", samples=20, find_unused_parameters=True),
    "rigl, layers dropped": lambda: parallel("rigl", drops=True, find_unused_parameters=True),
    "rigl, inside another": inside_another,
    "no rule": without_dynamic,
    "no rule, buffers off": lambda: without_dynamic(broadcast_buffers=False),
    "sub-group": by_hand,
    "independent": independent,
    "different": different,
    "ending early": ending_early,
    "messages": messages,
}


def main(path: str) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # of torch 2.14, about broadcast_buffers
    dist.init_process_group("gloo")
    found = {}
    for name, case in CASES.items():
        found[name] = case()
        dist.barrier()
    with open(f"{path}.{dist.get_rank()}", "w") as file:
        json.dump(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
