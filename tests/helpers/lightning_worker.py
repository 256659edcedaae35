"""What Lightning's Trainer does with the callback, case by case: python lightning_worker.py FOLDER.

In a process of its own, since to import Lightning warns and takes long; prints JSON.
"""

import json
import logging
import sys
from types import SimpleNamespace

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from sparse_engine import dense_state_dict, sparsify
from sparse_engine.errors import InputError
from sparse_engine.integrations.lightning import DynamicSparsityCallback

FOLDER = sys.argv[1]
X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
EVEN = TensorDataset(X, X[:, :8].argmax(1))
DATA = Subset(EVEN, range(61))


class Module(pl.LightningModule):
    def __init__(self, seed=0, sparse=True, early=False):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
        self.early = torch.optim.SGD(self.parameters(), 0.1) if early else None
        if sparse:
            sparsify(self.net, 0.6, "uniform", (4, 4))

    def training_step(self, batch, number):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, number):
        self.log("loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return self.early or torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Reference(Callback):
    """The exponential average of dense weights, on the blocks that were there in every step since.

    It comes next after the callback that averages: a block that an update drops and grows again is
    in the average with its weights of before, or with zeros.
    """

    average = None
    seen = 0

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step > self.seen:
            self.seen, new = trainer.global_step, weights(module)
            before = new if self.average is None else self.average
            self.average = [0.9 * a + 0.1 * w for a, w in zip(before, new)]

    def on_train_batch_start(self, trainer, module, *_):
        if self.average is not None:
            present = [module.net[i].block_mask() for i in (0, 2)]
            wide = [m.repeat_interleave(4, 0).repeat_interleave(4, 1) for m in present]
            self.average = [a * m for a, m in zip(self.average, wide)]


def weights(module):
    state = dense_state_dict(module.net)
    return [state[f"{i}.weight"].clone() for i in (0, 2)]


def masks(module):
    return torch.cat([module.net[i].layout.mask().flatten() for i in (0, 2)])


def fit(
    size=8,
    parts=1,
    epochs=2,
    callbacks=(),
    module=None,
    checkpoint=None,
    validate=False,
    data=DATA,
    **options,
):
    module, callback = module or Module(), DynamicSparsityCallback("rigl", 3, 0.5)
    others = [c for c in callbacks if c is not None]
    found = [callback if c is None else c for c in callbacks] if None in callbacks else None
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=parts,
        callbacks=found or [callback, *others],
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in others),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=FOLDER,
        **{"logger": False, **options},
    )
    checked = DataLoader(DATA, 32) if validate else None
    trainer.fit(module, DataLoader(data, size), checked, ckpt_path=checkpoint)
    return module, callback, trainer


def accumulated():
    whole, callback, _ = fit(8, data=EVEN)
    parts, *_ = fit(4, 2, data=EVEN)
    return {
        "equal": masks(whole).equal(masks(parts)),
        "moved": int((masks(whole) != masks(Module())).sum()),
        "stop": callback.dynamic.schedule.stop,
    }


def resumed():
    through, *_ = fit(epochs=4)
    fit(epochs=4, callbacks=[ModelCheckpoint(FOLDER, "{epoch}", save_top_k=-1)])
    found = {}
    for epoch in (0, 1):
        module, callback, _ = fit(
            epochs=4, module=Module(5), checkpoint=f"{FOLDER}/epoch={epoch}.ckpt"
        )
        pairs = zip(module.state_dict().values(), through.state_dict().values())
        found[epoch] = [all(a.equal(b) for a, b in pairs), callback.dynamic.steps]
    return found


def averaged():
    """Return how far Lightning's averages are from that of dense weights, in either order."""
    found = {}
    for order in ("before", "after"):
        average, reference = EMAWeightAveraging(decay=0.9), Reference()
        callbacks = [average, reference, None] if order == "before" else [None, average, reference]
        module, *_ = fit(epochs=4, callbacks=callbacks, validate=True)
        differences = [(a - w).abs().max() for a, w in zip(reference.average, weights(module))]
        found[order] = float(max(differences))
    module, *_ = fit(epochs=4, callbacks=[None, StochasticWeightAveraging(0.01, 1)], validate=True)
    found["swa finite"] = bool(module.net(X).isfinite().all())
    return found


def logged():
    _, _, trainer = fit(logger=CSVLogger(FOLDER, "logs"), log_every_n_steps=50)
    with open(f"{trainer.logger.log_dir}/metrics.csv") as file:
        return [file.readline(), *file.readlines()]


def trained_on():
    """A Trainer that is told to train on keeps what the callback knows."""
    module, callback, trainer = fit()
    steps = [callback.dynamic.steps]
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, DataLoader(DATA, 8))
    return [*steps, callback.dynamic.steps]


def told(call):
    try:
        call()
    except InputError as error:
        return str(error)
    return "nothing"


def refused():
    trainer = SimpleNamespace(strategy=type("DeepSpeedStrategy", (), {})())
    fsdp = SimpleNamespace(strategy=pl.strategies.FSDPStrategy())
    callback = DynamicSparsityCallback()
    return {
        "dense": told(lambda: fit(module=Module(sparse=False))),
        "early": told(lambda: fit(module=Module(early=True))),
        "deepspeed": told(lambda: callback.setup(trainer, None, "fit")),
        "fsdp": told(lambda: callback.setup(fsdp, None, "fit")),
        "short": told(lambda: fit(size=61, epochs=1)),
        "fast_dev_run": told(lambda: fit(fast_dev_run=True)),
        "bf16": told(lambda: fit(precision="bf16-mixed")),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    cases = (accumulated, resumed, averaged, logged, trained_on, refused)
    print(json.dumps({case.__name__: case() for case in cases}))
