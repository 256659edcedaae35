"""A model, optimizer, schedule and average of timm's, with sparse layers that move.

python examples/timm_model.py                                           digits, minutes on a CPU
python examples/timm_model.py --resume timm/last.pt                     continue from a checkpoint
torchrun --nproc-per-node 2 examples/timm_model.py                      two processes

In timm's own training script the lines are the same: sparsify after create_model, DynamicSparsity
after the average is made, dynamic.step() after optimizer.step().
"""

import argparse
import hashlib
from pathlib import Path
from types import SimpleNamespace

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, init_distributed_device
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from sparse_engine import DynamicSparsity, report, sparsify


def main(tiny: bool, resume: Path | None, out: Path) -> None:
    """Train, and print what there is."""
    settings = SimpleNamespace(device="cpu")
    init_distributed_device(settings)
    torch.manual_seed(0)
    pixels, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = pixels.float().view(-1, 1, 8, 8) / 16
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=8,
        patch_size=2,
        in_chans=1,
        num_classes=10,
        embed_dim=64,
        depth=2,
        num_heads=2,
    )
    sparsify(model, sparsity=0.8, block=(16, 16), skip=["patch_embed*", "head"])
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    average = ModelEmaV3(model, decay=0.9)
    wrapped = DistributedDataParallel(model) if settings.distributed else model
    epochs, size = (2, 16) if tiny else (20, 64)
    steps = epochs * ((100 if tiny else len(images)) // size)
    schedule = CosineLRScheduler(optimizer, steps, warmup_t=steps // 10, t_in_epochs=False)
    dynamic = DynamicSparsity(
        model, optimizer, "rigl", 2 if tiny else 20, total_steps=steps, averages=[average.module]
    )
    parts = {"model": model, "optimizer": optimizer, "average": average.module, "dynamic": dynamic}
    step = 0
    if resume is not None:
        state = torch.load(resume, weights_only=True)
        step = state.pop("step")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    while step < steps:
        torch.manual_seed(step)  # so that a resumed run sees the same batches
        batch = torch.randperm(len(images))[:size][settings.rank :: settings.world_size]
        F.cross_entropy(wrapped(images[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        dynamic.step()
        step += 1
        average.update(model, step)
        schedule.step_update(step)
        if settings.rank == 0 and step in (steps // 2, steps):
            out.mkdir(parents=True, exist_ok=True)
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**state, "step": step}, out / ("last.pt" if step == steps else "half.pt"))
    if settings.rank == 0:
        print(report(model))
        right = average.module.eval()(images[-360:]).argmax(1) == labels[-360:]
        print(f"accuracy of the average {right.float().mean():.4f}")
    tensors = [*model.state_dict().values(), *average.module.state_dict().values()]
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()
    print(f"process {settings.rank}: weights {digest[:16]}")
    if settings.distributed:
        distributed.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few steps")
    parser.add_argument("--resume", type=Path, help="a checkpoint to continue from")
    parser.add_argument("--out", type=Path, default=Path("timm"))
    arguments = parser.parse_args()
    main(arguments.tiny, arguments.resume, arguments.out)
