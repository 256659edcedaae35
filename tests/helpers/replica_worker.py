"""One process of two in test_replicas.py: each has drawn other blocks."""

import json
import warnings

import torch
import torch.distributed as dist
from copied_networks import X, network, tensors
from torch.nn.parallel import DistributedDataParallel

CASES = {
    "buffers on": {},
    "buffers off": {"broadcast_buffers": False},
    "not at the start": {"init_sync": False},
    "left out by name": {},
}


def work(rank, folder):
    """Do all cases; process 1 writes what it found."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch 2.14 asks for another word for broadcast_buffers
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {"blocks differ": not torch.equal(network(0)[0].block_ids, network(1)[0].block_ids)}
    wanted = network(0)(X)
    found |= {f"DDP, {name}": right(in_ddp(name, rank)(X), wanted) for name in CASES}
    compiled = torch.compile(network(rank), backend="eager")
    parallel = DistributedDataParallel(compiled, **CASES["buffers off"])
    found["DDP of a compiled network"] = right(parallel(X), wanted)
    model = network(rank)
    for tensor in tensors(model):
        dist.broadcast(tensor.data, 0)
    found["broadcast of parameters and buffers"] = right(model(X), wanted)
    model = network(rank)
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, 0)
    found["broadcast of a state dict"] = right(model(X), wanted)
    found["versions in a forward"] = versions(in_ddp("buffers on", rank))
    if rank:
        with open(f"{folder}/found.json", "w", encoding="utf-8") as file:
            json.dump(found, file)
    dist.destroy_process_group()


def in_ddp(name, rank):
    model = network(rank)
    if name == "not at the start":  # who says so has loaded the same values
        model.load_state_dict(network(0).state_dict())
    if name == "left out by name":
        ids = [key for key, _ in model.named_buffers() if key.endswith("block_ids")]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ids)
    return DistributedDataParallel(model, **CASES[name])


def right(found, wanted):
    return bool(torch.allclose(found, wanted, atol=1e-6))


def versions(parallel):
    """Return by how much a version of ids rises in each of three forwards."""
    ids, rises = parallel.module[0].block_ids, []
    parallel(X)
    for _ in range(3):
        before = ids._version
        parallel(X)
        rises.append(ids._version - before)
    return rises
