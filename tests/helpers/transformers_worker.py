"""What the Trainer of transformers does with the callback: python transformers_worker.py FOLDER.

In a process of its own, since to import transformers warns and takes long; prints JSON.
"""

import json
import sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sparse_engine import sparsify
from sparse_engine.errors import InputError
from sparse_engine.integrations.transformers import DynamicSparsityCallback

FOLDER = sys.argv[1]
X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
DATA = [{"x": x, "labels": y} for x, y in zip(X, X[:, :8].argmax(1))]


class Model(nn.Module):
    def __init__(self, seed=0, sparse=True):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
        if sparse:
            sparsify(self.net, 0.6, "uniform", (4, 4))

    def forward(self, x, labels=None):
        y = self.net(x)
        return {"loss": F.cross_entropy(y, labels), "logits": y}


class Record(TrainerCallback):
    """Stands for TensorBoard and other places that a Trainer reports to."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def masks(model):
    return torch.cat([model.net[i].layout.mask().flatten() for i in (0, 2)])


def fit(
    size=8,
    parts=1,
    epochs=2,
    model=None,
    resume=None,
    with_callback=True,
    optimizer=None,
    given=None,
    **options,
):
    model, record = model or Model(), Record()
    arguments = TrainingArguments(
        f"{FOLDER}/run",
        per_device_train_batch_size=size,
        gradient_accumulation_steps=parts,
        num_train_epochs=epochs,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=3,
        learning_rate=0.01,
        **{"save_strategy": "no", **options},
    )
    trainer = Trainer(
        model, arguments, train_dataset=DATA, callbacks=[record], optimizers=(optimizer, None)
    )
    trainer.remove_callback(PrinterCallback)
    callback = given or DynamicSparsityCallback("rigl", 3, 0.5)
    if with_callback:
        callback.add_to(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return model, callback, record, trainer


def accumulated():
    whole, callback, record, trainer = fit(8)
    parts, *_ = fit(4, 2)
    return {
        "equal": masks(whole).equal(masks(parts)),
        "moved": int((masks(whole) != masks(Model())).sum()),
        "stop": callback.dynamic.schedule.stop,
        "reported": record.logs,
        "history": trainer.state.log_history,
    }


def resumed():
    through, *_ = fit(epochs=4, save_strategy="epoch")
    found = {}
    for restore in (False, True):
        options = {"restore_callback_states_from_checkpoint": restore}
        model, *_ = fit(epochs=4, model=Model(5), resume=f"{FOLDER}/run/checkpoint-16", **options)
        pairs = zip(model.state_dict().values(), through.state_dict().values())
        found[str(restore)] = all(a.equal(b) for a, b in pairs)
    return found


def joined_late():
    """A checkpoint of a Trainer without the callback: updates begin at its step."""
    fit(save_strategy="epoch", with_callback=False)
    _, callback, _, _ = fit(epochs=4, resume=f"{FOLDER}/run/checkpoint-16", save_strategy="epoch")
    return [callback.dynamic.steps, callback.dynamic.topology.updates]


def averaged():
    model = Model()
    average = AveragedModel(model)
    fit(model=model, given=DynamicSparsityCallback("rigl", 3, 0.5, averages=[average]))
    return masks(average.module).equal(masks(model))


def told(call):
    try:
        call()
    except InputError as error:
        return str(error)
    return "nothing"


def refused():
    late = Model(sparse=False)
    early = torch.optim.SGD(late.parameters(), 0.1)
    sparsify(late.net, 0.6, "uniform", (4, 4))
    callback = DynamicSparsityCallback(averages=[AveragedModel(Model())])
    deepspeed = SimpleNamespace(deepspeed="zero3.json")
    return {
        "dense": told(lambda: fit(model=Model(sparse=False))),
        "early": told(lambda: fit(model=late, optimizer=early)),
        "deepspeed": told(lambda: callback.on_init_end(deepspeed, None, None)),
        "made anew": told(lambda: DynamicSparsityCallback(**callback.state()["args"])),
        "bf16": told(lambda: fit(bf16=True)),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = (accumulated, resumed, joined_late, averaged, refused)
    found = {case.__name__: case() for case in cases}
    print(json.dumps(found))
