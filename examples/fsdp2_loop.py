"""Sparse layers whose values FSDP2 cuts up among processes, with RigL and checkpoints by DCP.

torchrun --nproc-per-node 2 examples/fsdp2_loop.py              handwritten digits, on a CPU
torchrun --nproc-per-node 3 examples/fsdp2_loop.py --resume     go on from the last checkpoint
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from sparse_engine import DynamicSparsity, report, sparsify


def main(tiny: bool, resume: bool, out: Path) -> None:
    """Train, and print what there is."""
    torch.manual_seed(0)  # in all processes, so that they choose the same blocks
    pixels, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    model = nn.Sequential(
        *(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    )
    sparsify(model, sparsity=0.8, block=(16, 16))
    for layer in (*model[::2], model):
        fully_shard(layer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps, interval, first = (20, 5, 0) if tiny else (400, 20, 0)
    dynamic = DynamicSparsity(model, optimizer, "rigl", interval, total_steps=steps)
    if resume:
        first = load(model, optimizer, dynamic, out)
    rank, count, loss = dist.get_rank(), dist.get_world_size(), torch.tensor(torch.nan)
    for step in range(first, steps):
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(step))
        own = chosen[:120].chunk(count)[rank]
        loss = F.cross_entropy(model(pixels[own].float() / 16), labels[own])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dynamic.step()
        if step + 1 == steps // 2:
            save(model, optimizer, dynamic, out)
    if rank == 0:
        print(report(model))
        print(f"weights that were ever active: {dynamic.exploration_rate():.2f}")
        print(f"loss of this process {loss.item():.4f}")


def save(
    model: nn.Module, optimizer: torch.optim.Optimizer, dynamic: DynamicSparsity, out: Path
) -> None:
    """Write a checkpoint: every process its part of values and state, the first what all have."""
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=out)
    if dist.get_rank() == 0:
        torch.save(dynamic.state_dict(), out / "dynamic.pt")


def load(
    model: nn.Module, optimizer: torch.optim.Optimizer, dynamic: DynamicSparsity, out: Path
) -> int:
    """Go on from a checkpoint, of however many processes; return the steps that it has done."""
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=out)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    dynamic.load_state_dict(torch.load(out / "dynamic.pt"))
    return dynamic.steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="20 steps")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--out", type=Path, default=Path("fsdp2"))
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:  # not started by torchrun: a single process
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    main(arguments.tiny, arguments.resume, arguments.out)
    dist.destroy_process_group()
