"""Sparse layers in a loop with Hugging Face's Accelerate, which keeps the topology's state.

python examples/accelerate_loop.py                                      digits, a minute on a CPU
python examples/accelerate_loop.py --resume accelerate/epoch-1          continue from a checkpoint
torchrun --nproc-per-node 2 examples/accelerate_loop.py                 two processes
"""

import argparse
import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparse_engine import DynamicSparsity, report, sparsify


def main(tiny: bool, resume: Path | None, out: Path) -> None:
    """Train, and print what there is."""
    torch.manual_seed(0)
    # An order that depends on the epoch alone, so that a resumed run sees the same batches.
    order = DataLoaderConfiguration(use_seedable_sampler=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, dataloader_config=order)
    pixels, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    pixels, labels = pixels.float()[: 100 if tiny else None] / 16, labels[: 100 if tiny else None]
    model = nn.Sequential(
        *(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    )
    sparsify(model, sparsity=0.8, block=(16, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = DataLoader(TensorDataset(pixels, labels), 16, shuffle=True)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    epochs = 2 if tiny else 20
    steps = epochs * -(-len(batches) // 2)  # of the optimizer
    bare, interval = accelerator.unwrap_model(model), 2 if tiny else 20
    dynamic = DynamicSparsity(bare, optimizer, "rigl", interval, total_steps=steps)
    accelerator.register_for_checkpointing(dynamic)
    first = 0
    if resume is not None:
        accelerator.load_state(str(resume))
        first = int(resume.name.partition("-")[2])
    for epoch in range(first, epochs):
        batches.set_epoch(epoch)
        for x, y in batches:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
                dynamic.step()  # a micro-batch without a step of the optimizer does not count
        accelerator.save_state(str(out / f"epoch-{epoch + 1}"))
    if accelerator.is_main_process:
        print(report(bare))
        print(f"weights that were ever active: {dynamic.exploration_rate():.2f}")
    tensors = b"".join(t.numpy().tobytes() for t in bare.state_dict().values())
    digest = hashlib.sha256(tensors).hexdigest()
    print(f"process {accelerator.process_index}: weights {digest[:16]}")
    accelerator.end_training()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="two epochs of 100 images")
    parser.add_argument("--resume", type=Path, help="a checkpoint to continue from")
    parser.add_argument("--out", type=Path, default=Path("accelerate"))
    arguments = parser.parse_args()
    main(arguments.tiny, arguments.resume, arguments.out)
