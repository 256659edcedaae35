"""Damaged, edited and crafted files of a run: it goes on, or says why not in one line.

A refused run leaves every file as it was.
"""

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from fuzzing import FLAGS, contents, outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparse_engine import train
from sparse_engine.errors import Stopped
from sparse_engine.runs.files import load_file
from sparse_engine.training.trainer import Trainer

CASES = [100, pytest.param(10_000, marks=pytest.mark.slow)]
OPTIONS = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
SEEDS = st.integers(0, 2**32)
# Stopped in their last epoch, in the last of several phases; the second has states to rewind to.
RUNS = {
    "edst": ["--method", "edst", "--members", "2", "--epochs", "4"],
    "ltr": [
        "--method",
        "ltr",
        "--rounds",
        "2",
        "--members",
        "2",
        "--epochs",
        "6",
        "--sparsity",
        "0.6",
    ],
    "snfs": ["--method", "snfs", "--epochs", "4", "--select", "validation", "--dropout", "0.1"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the runs, each stopped two steps before its end."""
    path, step = tmp_path_factory.mktemp("checkpoints"), Trainer._train_step

    def stop(self, phase):
        step(self, phase)
        left = sum(p.steps for p in self.phases) - self.progress.step - 1
        if left == 1:
            self.signals.received = 15

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(Trainer, "_train_step", stop)
        for name, flags in RUNS.items():
            with pytest.raises(Stopped):
                outcome(train.main, [*FLAGS, *flags, "--out", f"runs/{name}"], begins=True)
    return path


@pytest.fixture(autouse=True)
def _in_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def run_all(cases, damage, strategy=SEEDS):
    """Resume copies of runs with something done to them; return how often what was found."""
    found = Counter()

    @settings(max_examples=cases, **OPTIONS)
    @given(strategy, st.sampled_from(list(RUNS)))
    def check(drawn, name):
        shutil.rmtree("copy", ignore_errors=True)
        shutil.copytree(f"runs/{name}", "copy")
        damage(drawn)
        before = contents("copy")
        ended = outcome(train.main, ["--resume", "copy"], begins=True)
        if ended == "refused":
            assert contents("copy") == before
        found[ended] += 1

    check()
    print(f"{sum(found.values())} cases: {dict(found)}")
    return found


def damage_bytes(data, draw):
    """Flip, cut, repeat, insert or overwrite bytes."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice([1, 1, 8, 1000]))
        kind = draw.randrange(6)
        if kind <= 1 and start < len(data):
            data[start] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del data[start:]
        elif kind == 3:
            del data[start:end]
        elif kind == 4:
            data[start:start] = draw.randbytes(end - start)
        else:
            data[start:end] = draw.randbytes(end - start)
    return bytes(data)


@pytest.mark.parametrize("cases", CASES)
def test_bytes_of_checkpoints(cases):
    def damage(seed):
        draw = random.Random(seed)
        path = Path("copy", draw.choice(["last.pt", "last.pt", "member_1.pt"]))
        path = path if path.exists() else Path("copy/last.pt")
        if draw.random() < 0.7:
            Path("copy/previous.pt").unlink()
        path.write_bytes(damage_bytes(path.read_bytes(), draw))

    found = run_all(cases, damage)
    assert found["refused"] > cases / 3
    assert found["done"]  # from the checkpoint before


@pytest.mark.parametrize("cases", CASES)
def test_bytes_of_text_files(cases):
    def damage(seed):
        draw = random.Random(seed)
        names = ["blocks.csv", "config.json", "kernels.json", "metrics.csv", "metrics.json"]
        path = Path("copy", draw.choice(names))
        if path.name == "metrics.json":
            path.write_text('{"accuracy": 0.5}')
        path.write_bytes(damage_bytes(path.read_bytes(), draw))

    found = run_all(cases, damage)
    assert found["refused"] > cases / 10


def places(state, path=()):
    """Yield the path of every value within nested containers."""
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def odd_tensors(value, draw):
    """Return tensors unlike one that is there."""
    flat = value.flatten()
    return [
        lambda: torch.zeros(1).expand(2**40),
        lambda: value.double() if value.dtype != torch.float64 else value.float(),
        lambda: value.long(),
        lambda: value.unsqueeze(0),
        lambda: flat[: len(flat) // 2].clone(),
        lambda: torch.cat([flat, flat]),
        lambda: value.new_empty(0),
        lambda: value.new_full((), 3),
        lambda: value.expand(2, *value.shape),
        lambda: value.to("meta"),
        lambda: value.float().to_sparse(),
        lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        lambda: torch.full_like(value, -1) if value.is_signed() else torch.ones_like(value),
        lambda: (
            torch.full_like(value, torch.nan)
            if value.is_floating_point()
            else value.flip(0)
            if value.ndim
            else value + 1
        ),
        lambda: value.roll(draw.randrange(1, 5)),
        lambda: changed(value, draw),
        lambda: torch.nn.Parameter(value.float()),
        lambda: torch.complex(value.float(), value.float()),
    ]


def changed(value, draw):
    """Return a tensor with one number changed."""
    value = value.clone()
    if value.numel():
        top = 1 if value.dtype == torch.bool else 255
        odd = draw.choice([0, 1, -1, 2**31 - 1, 10**6]) if value.is_signed() else top
        value.view(-1)[draw.randrange(value.numel())] = odd
    return value


ODD_VALUES = [None, True, False, 0, 1, -1, 2**70, -(2**40), 0.5, -0.5, float("nan"), float("inf")]
ODD_VALUES += ["", "x" * 99, [], {}, [1, [2]], {"a": 1}, {1: 2}, (), torch.zeros(3)]


def edit(state, draw):
    """Change something in a state: a value, a key, a tensor."""
    path = draw.choice(list(places(state)))
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    value, kind = holder[path[-1]], draw.random()
    if kind < 0.1:
        del holder[path[-1]]
    elif kind < 0.2 and isinstance(holder, dict):
        holder[draw.choice(["zzz", 7, path[-1]])] = draw.choice(ODD_VALUES)
    elif kind < 0.7 and isinstance(value, torch.Tensor):
        holder[path[-1]] = draw.choice(odd_tensors(value, draw))()
    elif kind < 0.8 and isinstance(holder, dict):
        other = draw.choice(list(holder))
        holder[path[-1]], holder[other] = holder[other], value
    elif kind < 0.9 and type(value) in (int, float):
        holder[path[-1]] = draw.choice([-value, value + 1, value - 1, 2 * value, type(value)(9**9)])
    else:
        holder[path[-1]] = draw.choice(ODD_VALUES)


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.filterwarnings("ignore")  # of kinds of tensors that torch no longer likes
def test_edited_checkpoints(cases):
    def damage(seed):
        draw = random.Random(seed)
        path = Path("copy", draw.choice(["last.pt"] * 5 + ["member_1.pt"]))
        path = path if path.exists() else Path("copy/last.pt")
        if draw.random() < 0.7:
            Path("copy/previous.pt").unlink()
        state = load_file(path)
        for _ in range(draw.choice([1, 1, 2])):
            edit(state, draw)
        torch.save(state, path)

    found = run_all(cases, damage)
    assert found["refused"] > cases / 3
    assert found["done"]
