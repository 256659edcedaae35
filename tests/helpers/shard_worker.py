"""One of several processes that share a network's values by FSDP2, case after case.

python shard_worker.py FILE CASE...    with the environment that torchrun gives; writes FILE.RANK

Every process also trains the same network by itself on whole batches, to be compared with.
"""

import json
import sys
import warnings
from functools import cache, partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from sharded_runs import (
    INTERVAL,
    STEPS,
    Net,
    Run,
    batch,
    compared,
    compared_large,
    cut,
    network,
    whole,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from bench.dev.sharded_bytes import counted
from sparse_engine import DynamicSparsity, sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer


def both(rule: str = "rigl", how: str = "train") -> list:
    models = cut(network(rule)), network(rule)
    return compared(*(getattr(Run(model, rule), how)() for model in models))


@cache
def alone() -> Run:
    """Return what one process makes of the network with RigL."""
    return Run(network()).train()


def from_meta() -> list:
    runs = []
    for share in (cut, lambda model: model):
        model = share(network(device="meta"))
        model.to_empty(device="cpu")
        torch.manual_seed(5)
        for layer in (m for m in model.modules() if isinstance(m, SparseLayer)):
            layer.reset_parameters()
        runs.append(Run(model).train())
    return compared(*runs)


def hybrid() -> list:
    """Have whole copies in each process, and FSDP2's means over all of them."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("copies", "parts"))
    return compared(Run(cut(network(), mesh)).train(), alone())


def averaged() -> list:
    """Keep a mean of the weights, cut up as they are."""
    runs = []
    for share in (cut, lambda model: model):
        run = Run(share(network()))
        average = share(network()).requires_grad_(False)
        group = None if run.is_sharded else False
        run.dynamic = DynamicSparsity(
            *(run.model, run.optimizer, "rigl", INTERVAL),
            **{"total_steps": 20, "process_group": group, "averages": [average]},
        )
        for step in range(STEPS):
            run.train(step, step + 1)
            average(batch(step, run.share)[0])  # which leaves whole copies of its parameters
            if run.is_sharded:
                average.reshard()
            with torch.no_grad():
                for mean, new in zip(average.parameters(), run.model.parameters()):
                    mean.lerp_(new, 0.2)
        runs.append((run, [whole(p) for p in average.parameters()]))
    (together, means), (alone, own_means) = runs
    *found, far = compared(together, alone)
    return [*found, max(far, *(float((a - b).abs().max()) for a, b in zip(means, own_means)))]


def sent() -> list[list[float]]:
    """Return what a process holds and sends of a dense network, and of a sparse one."""
    sparse = nn.Sequential(*(nn.Linear(48, 48, bias=False) for _ in range(3)))
    sparsify(sparse, 0.75, "uniform", (4, 4))
    dense = nn.Sequential(*(nn.Linear(48, 48, bias=False) for _ in range(3)))
    return [list(counted(model, torch.randn(4, 48))) for model in (dense, sparse)]


def mixed() -> list:
    """Return what bf16 gives, which is compared with nothing but the other processes."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    run = Run(cut(network(), mp_policy=policy))
    losses = [run.loss(step).item() for step in (0, 1)]
    run.train()
    dtypes = {str(p.dtype) for p in run.model.parameters()}
    sums = [float(n.sum()) for n in run.found()[1]]
    return [run.found()[0], run.updates, dtypes == {"torch.float32"}, sums, sum(losses)]


def held() -> list:
    """Return the slots of each layer that this process holds, and numbers of its state."""
    run = Run(cut(network())).train()
    layers = [m for m in run.model.modules() if isinstance(m, SparseLayer)]
    state = [run.optimizer.state[layer.values]["exp_avg"].to_local() for layer in layers]
    slots, own = [len(m.values) for m in layers], [len(m.values.to_local()) for m in layers]
    return [slots, own, [len(s) for s in state]]


def saved() -> list:
    """Return a run that goes on with one process less from a checkpoint, and one that ran on."""
    rank, count = dist.get_rank(), dist.get_world_size()
    folder = Path(f"{sys.argv[1]}-checkpoint")
    run = Run(cut(network())).train(0, 7)
    model, optimizer = get_state_dict(run.model, run.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
    if rank == 0:
        torch.save(run.dynamic.state_dict(), folder / "dynamic.pt")
    dist.barrier()
    group = dist.new_group(list(range(count - 1)))
    found: list = []
    if rank < count - 1:
        mesh = DeviceMesh.from_group(group, "cpu")
        run = Run(cut(network(), mesh), mesh=mesh)
        model, optimizer = get_state_dict(run.model, run.optimizer)
        dcp.load(
            {"model": model, "optimizer": optimizer}, checkpoint_id=folder, process_group=group
        )
        set_state_dict(run.model, run.optimizer, model_state_dict=model, optim_state_dict=optimizer)
        run.dynamic.load_state_dict(torch.load(folder / "dynamic.pt"))
        found = compared(run.train(7), alone())
    dist.barrier()
    return found


def told(make) -> str:
    """Return what something is refused with."""
    try:
        make()
    except (InputError, RuntimeError) as error:
        return str(error)
    return "nothing"


def refused() -> dict[str, str]:
    def made(model: nn.Module, **options) -> DynamicSparsity:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return DynamicSparsity(model, optimizer, interval=3, **options)

    def cut_later() -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        dynamic = DynamicSparsity(model, optimizer, interval=3)
        cut(model)
        for step in range(4):
            F.cross_entropy(model(batch(step, None)[0]), batch(step, None)[1]).backward()
            optimizer.step()
            dynamic.step()

    def by_tensor_parallelism() -> nn.Module:
        model, mesh = network(), DeviceMesh("cpu", list(range(dist.get_world_size())))
        values = distribute_tensor(model.first.values.data, mesh, [Shard(0)])
        model.first.values = nn.Parameter(values)
        return model

    def by_columns() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 12))
        sparsify(model, 0.5, "uniform", (6, 6))
        return fully_shard(model, shard_placement_fn=lambda parameter: Shard(parameter.ndim - 2))

    model = cut(network())
    return {
        "later": told(cut_later),
        "tensor parallel": told(lambda: made(by_tensor_parallelism())),
        "columns": told(lambda: made(by_columns())),
        "other blocks": told(lambda: cut(network(seed=dist.get_rank()))),
        "group": told(lambda: made(model, process_group=False)),
        "weight": told(lambda: model.first.weight),
        "dense state": told(lambda: model.load_state_dict(Net().state_dict())),
    }


CASES = {
    **{rule: (lambda rule=rule: both(rule)) for rule in ("rigl", "snfs", "granet")},
    "accumulated": lambda: both(how="accumulate"),
    "thrown away": lambda: both(how="throw_away"),
    "update first": lambda: both(how="update_first"),
    "from meta": from_meta,
    "averaged": averaged,
    "mixed": mixed,
    "sent": sent,
    "held": held,
    "saved": saved,
    "refused": refused,
}
SLOW = {
    **{name: partial(compared_large, name) for name in ("resnet18", "vit")},
    "set": lambda: both("set"),
    "hybrid": hybrid,
}


def main(path: str, *names: str) -> None:
    dist.init_process_group("gloo")
    found = {}
    for name in names or CASES:
        found[name] = {**CASES, **SLOW}[name]()
        dist.barrier()
    Path(f"{path}.{dist.get_rank()}").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    main(*sys.argv[1:])
