"""Programs in the pages run as printed, with small stand-ins for what is the reader's own."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import get_ema_multi_avg_fn

import sparse_engine
from sparse_engine.export import main as export
from sparse_engine.train import main as train

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    f"{page.relative_to(ROOT)}:{number}": code
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.M)
    )
}
# test_readme.py runs it, with nothing given.
WHOLE = "README.md:0"
OF_RUNS = [name for name, code in PROGRAMS.items() if re.search(r'"(runs/|ticket\.)', code)]
# What a program's own imports need, and take seconds to import.
OF_CLIENTS = {
    name: package
    for package in ("lightning", "transformers")
    for name, code in PROGRAMS.items()
    if f"integrations.{package}" in code
}


class Network(nn.Module):
    """A classifier of 32 numbers with layers in a list."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(32, 128), nn.Linear(128, 128)])
        self.head = nn.Linear(128, 4)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


def stand_ins():
    """Return what the pages take as given: a model before sparsify, data, and others' objects."""
    x, y = torch.randn(8, 32), torch.randint(4, (8,))
    trainer = SimpleNamespace(
        callback_handler=SimpleNamespace(callbacks=[]),
        args=SimpleNamespace(deepspeed=None),
        state=None,
        control=None,
        train=lambda **_: None,
    )
    return {
        **{name: getattr(sparse_engine, name) for name in ("sparsify", "DynamicSparsity")},
        **{"torch": torch, "cross_entropy": cross_entropy, "loss": cross_entropy},
        **{"get_ema_multi_avg_fn": get_ema_multi_avg_fn, "fully_shard": lambda layer: layer},
        **{"model": Network(), "batches": [(x, y)] * 2, "images": torch.randn(8, 1, 8, 8)},
        **{"Trainer": lambda *_, **__: trainer, "arguments": None, "data": None},
        "accelerator": SimpleNamespace(
            unwrap_model=lambda model: model, register_for_checkpointing=lambda dynamic: None
        ),
    }


def run_with_stand_ins(name):
    """Run a program on a network that the page takes as given."""
    code = PROGRAMS[name]
    given = {**stand_ins(), "images": torch.randn(8, 32)}
    if "sparsify(" not in code:  # then the page has done so before
        sparse_engine.sparsify(given["model"], 0.5, block=(8, 8))
    given["optimizer"] = torch.optim.SGD(given["model"].parameters(), lr=0.1)
    if "GroupedMembers(" in code:
        given["models"] = [Network(), Network()]
        for model in given["models"]:
            sparse_engine.sparsify(model, 0.5, block=(8, 8))
        given["x"], given["y"] = torch.randn(2, 8, 32), torch.randint(4, (2, 8))
    exec(compile(code, name, "exec"), given)


@pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - {WHOLE, *OF_RUNS, *OF_CLIENTS}))
def test_a_program_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_with_stand_ins(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_CLIENTS)
def test_a_program_of_a_trainer_runs(name):
    pytest.importorskip(OF_CLIENTS[name], reason="not installed: extra integration")
    run_with_stand_ins(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with what the pages call runs and tickets."""
    folder = tmp_path_factory.mktemp("pages")
    short = ["--model", "mlp", "--block", "8x8", "--device", "cpu"]
    edst = ["--method", "edst", "--members", "2", "--epochs", "8", "--batch-size", "32"]
    train([*edst, *short, "--out", str(folder / "runs/edst-digits-1")])
    rigl = ["--method", "rigl", "--epochs", "4", "--batch-size", "32"]
    train([*rigl, *short, "--out", str(folder / "runs/rigl-digits-1")])
    for kind, file in (("safetensors", "ticket.safetensors"), ("torch-export", "ticket.pt2")):
        run = [str(folder / "runs/edst-digits-1"), "--member", "1"]
        export([*run, "--format", kind, "--out", str(folder / file)])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_RUNS)
def test_a_program_on_runs_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    network = sparse_engine.load_safetensors("ticket.safetensors")
    given = {**stand_ins(), "network": sparse_engine.densify(network)}
    exec(compile(PROGRAMS[name], name, "exec"), given)


def test_the_programs_are_found():
    assert WHOLE in PROGRAMS
    assert len(OF_RUNS) >= 3
    assert len(PROGRAMS) > 10
