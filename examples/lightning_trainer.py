"""Sparse layers in Lightning's Trainer, whose callback updates their topology.

python examples/lightning_trainer.py                                    digits, a minute on a CPU
python examples/lightning_trainer.py --resume lightning/epoch=1.ckpt    continue from a checkpoint
torchrun --nproc-per-node 2 examples/lightning_trainer.py               two processes

With pytorch_lightning in place of lightning.pytorch it is the same program.
"""

import argparse
import hashlib
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from sparse_engine import report, sparsify
from sparse_engine.integrations.lightning import DynamicSparsityCallback


class Digits(LightningModule):
    """A perceptron of 8x8 images; sparse before configure_optimizers is called."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
        self.net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))
        sparsify(self, sparsity=0.8, block=(16, 16))

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        """Return the loss of a batch."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], number: int) -> None:
        """Log the accuracy, which is that of the average of weights."""
        right = self.net(batch[0]).argmax(1) == batch[1]
        self.log("accuracy", right.float().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def main(tiny: bool, resume: Path | None, out: Path) -> None:
    """Train, and print what there is."""
    torch.manual_seed(0)
    pixels, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    data = TensorDataset(pixels.float() / 16, labels)
    test, rest = torch.utils.data.random_split(data, [360, len(data) - 360])
    if tiny:
        rest = torch.utils.data.Subset(rest, range(100))
    processes, module = int(os.environ.get("WORLD_SIZE", "1")), Digits()
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_epochs=2 if tiny else 20,
        callbacks=[
            DynamicSparsityCallback("rigl", interval=2 if tiny else 20),
            EMAWeightAveraging(decay=0.9),
            ModelCheckpoint(out, "{epoch}", save_top_k=-1),
        ],
        logger=CSVLogger(out, name="logs"),
        log_every_n_steps=1,
        enable_progress_bar=False,
    )
    # An order that depends on the epoch alone, so that a resumed run sees the same batches.
    order = DistributedSampler(rest, processes, trainer.global_rank)
    batches = DataLoader(rest, 16, sampler=order)
    trainer.fit(module, batches, DataLoader(test, 128), ckpt_path=resume)
    if trainer.is_global_zero:
        print(report(module))
        for name, value in trainer.callback_metrics.items():
            print(f"{name} {float(value):.4f}")
    tensors = b"".join(t.numpy().tobytes() for t in module.state_dict().values())
    print(f"process {trainer.global_rank}: weights {hashlib.sha256(tensors).hexdigest()[:16]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="two epochs of 100 images")
    parser.add_argument("--resume", type=Path, help="a checkpoint to continue from")
    parser.add_argument("--out", type=Path, default=Path("lightning"))
    arguments = parser.parse_args()
    main(arguments.tiny, arguments.resume, arguments.out)
