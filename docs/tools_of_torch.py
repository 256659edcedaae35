"""Programs that try PyTorch's own tools on sparse layers; see tools.py."""

import copy
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from tool_rows import X, averages_as_dense, is_copy, network, tensors, tool
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from sparse_engine import dense_state_dict

TORCH = "torch"


@tool("copies by hand", TORCH, "`copy_`, `.data.copy_`, numpy, `.data =`")
def copies() -> str:
    def assign(own, other):
        own.data = other.detach().clone()

    def write(own, other):
        own.detach().numpy()[...] = other.detach().numpy()

    for way in (torch.Tensor.copy_, lambda own, other: own.data.copy_(other), assign, write):
        model, original = network(0), network(1)
        with torch.no_grad():
            for own, other in zip(tensors(model), tensors(original)):
                way(own, other)
        assert is_copy(model, original)
    return (
        "the copy computes what its tensors say; on a GPU, but for `copy_`, after `refresh(model)`"
    )


@tool(
    "`torch.optim.swa_utils`",
    TORCH,
    "`AveragedModel`, with and without `use_buffers`, between updates",
)
def averaged_model() -> str:
    ema = get_ema_multi_avg_fn(0.9)
    for buffers in (False, True):
        assert averages_as_dense(
            lambda m: AveragedModel(m, multi_avg_fn=ema, use_buffers=buffers),  # noqa: B023
            AveragedModel.update_parameters,
        )
    return "the average is that of the dense weights"


@tool("averages of two networks (soups)", TORCH, "dense state dicts, and sparse ones")
def soup() -> str:
    models = [network(seed) for seed in (0, 1)]
    first, second = map(dense_state_dict, models)
    right = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    right.load_state_dict({key: (first[key] + second[key]) / 2 for key in first})
    first, second = (model.state_dict() for model in models)
    mean = {k: (v + second[k]) / 2 if v.is_floating_point() else v for k, v in first.items()}
    try:
        network(2).load_state_dict(mean)
    except RuntimeError:
        return (
            "average `dense_state_dict(model)`: slots of two networks hold different blocks, and a "
            "mean of `state_dict()` is refused when it is loaded"
        )
    raise AssertionError("a mean of slots was loaded")


@tool("`deepcopy`, pickle, `torch.save`, `functional_call`", TORCH, "after copies that no one saw")
def whole_modules() -> str:
    model, original = network(0), network(1)
    for own, other in zip(tensors(model), tensors(original)):
        own.data.copy_(other.data)
    assert is_copy(copy.deepcopy(model), original)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model, f"{folder}/model.pt")
        assert is_copy(torch.load(f"{folder}/model.pt", weights_only=False), original)
    assert torch.allclose(functional_call(network(2), original.state_dict(), X), original(X))
    return "copies have the blocks that the tensors say"


@tool(
    "meta device",
    TORCH,
    "`to_empty` and `reset_parameters`, `load_state_dict(assign=True)`, `.to('meta')` and back",
)
def meta() -> str:
    original = network(1)
    with torch.device("meta"):
        model, other = network(0), network(0)
    ids = model[0].layout.block_ids.clone()
    model.to_empty(device="cpu")
    assert model[0].block_ids.equal(ids)
    model[0].reset_parameters()
    other.load_state_dict(original.state_dict(), assign=True)
    assert is_copy(other, original)
    ids = model[0].block_ids.clone()
    assert model.to("meta").to_empty(device="cpu")[0].block_ids.equal(ids)
    return "blocks are kept; values are as lost as those of dense layers"


@tool(
    "`torch.distributed.checkpoint`",
    TORCH,
    "`dcp.save`, `dcp.load`, `get_` and `set_` of `model_state_dict` and `state_dict`",
)
def checkpoints() -> str:
    original = network(1)
    with tempfile.TemporaryDirectory() as folder:
        dcp.save({"model": original.state_dict()}, checkpoint_id=folder)
        for model in (network(0), network(2)):
            state = get_model_state_dict(model)
            dcp.load({"model": state}, checkpoint_id=folder)
            assert is_copy(model, original)  # into live tensors
            set_model_state_dict(model, state)
            assert is_copy(model, original)
    first, second = (torch.optim.Adam(m.parameters()) for m in (original, model))
    original(X).sum().backward()
    first.step()
    first.zero_grad()
    states = get_state_dict(original, first)
    set_state_dict(model, second, model_state_dict=states[0], optim_state_dict=states[1])
    assert is_copy(model, original)
    return "models and optimizers load, into live tensors and into new models"


@tool(
    "DistributedDataParallel",
    TORCH,
    "two processes that drew different blocks; `broadcast_buffers` on and off",
    starts_processes=True,
)
def data_parallel() -> str:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(one_of_two, (folder,), nprocs=2)
    return "values and blocks are those of process 0, from the first forward"


def one_of_two(rank: int, folder: str) -> None:
    """Check in one process that it computes what process 0 does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for broadcast in (True, False):
        parallel = DistributedDataParallel(network(rank), broadcast_buffers=broadcast)
        assert torch.allclose(parallel(X), network(0)(X))
    dist.destroy_process_group()


@tool("FullyShardedDataParallel (FSDP1)", TORCH, "one process, from the meta device, then a step")
def fully_sharded() -> str:
    original = network(1)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/m", rank=0, world_size=1)
        try:
            with torch.device("meta"):
                model = network(0)
            ids = model[0].layout.block_ids.clone()
            model = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
            assert model.module[0].block_ids.equal(ids)
            model(X).sum().backward()
            torch.optim.SGD(model.parameters(), lr=0.1).step()
            model.load_state_dict(original.state_dict())
            assert torch.allclose(model(X), original(X))
        finally:
            dist.destroy_process_group()
    return "fixed blocks are kept, train and load; no updates of the topology"


@tool("activation checkpointing", TORCH, "both kinds, after a copy")
def recomputed() -> str:
    model, original = network(0), network(1)
    for own, other in zip(tensors(model), tensors(original)):
        own.data.copy_(other.data)
    original(X).square().sum().backward()
    for reentrant in (False, True):
        model.zero_grad()
        x = X.clone().requires_grad_()
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
        assert torch.allclose(model[0].values.grad, original[0].values.grad, atol=1e-6)
    return "gradients are those without"


@tool("`torch.amp.GradScaler`", TORCH, "a scaled step, and one that is left out")
def scaled() -> str:
    model = network(0)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    for factor in (1.0, float("inf")):
        before = model[0].values.detach().clone()
        scaler.scale(model(X).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert before.equal(model[0].values) == (factor > 1)
    return "steps are taken and left out as for dense layers"
