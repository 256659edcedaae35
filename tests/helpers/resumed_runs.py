"""Runs that are killed at a chosen moment, and how two runs are compared."""

import csv
from pathlib import Path

import pytest
import torch

from sparse_engine.runs.files import load_file
from sparse_engine.train import main
from sparse_engine.training.trainer import Trainer

FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
FLAGS += ["--distribution", "erk"]


class Killed(Exception):
    """Stands for whatever ends a process."""


def train(out, *flags):
    main([*FLAGS, "--out", out, *flags])


def train_and_kill(monkeypatch, number, *flags, before=False):
    """Train into `out` until a checkpoint (from 1, but step 0's) is, or is about to be, written."""
    save, calls = Trainer._save_checkpoint, []

    def save_and_die(self):
        if not self.progress.step:
            return save(self)
        calls.append(self)
        if before and len(calls) == number:
            raise Killed
        save(self)
        if len(calls) == number:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            train("out", *flags)


def kill_within_an_epoch(monkeypatch, step, *flags):
    """Train into `out` until the checkpoint of a step is written."""
    save = Trainer._save_checkpoint

    def save_and_die(self):
        save(self)
        if self.progress.step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            train("out", *flags, "--checkpoint-every", "1")


def rows_of(out):
    with Path(out, "metrics.csv").open(newline="") as file:
        return [{**row, "train_seconds": ""} for row in csv.DictReader(file)]


def block_rows_of(out):
    """Return what blocks.csv holds; nothing of a network without sparse layers."""
    path = Path(out, "blocks.csv")
    return path.read_text() if path.exists() else ""


def tickets_of(out):
    return [load_file(p, "model")["model"] for p in sorted(Path(out).glob("member_*.pt"))]


def assert_equal_runs(first, second):
    assert rows_of(first) == rows_of(second)
    assert block_rows_of(first) == block_rows_of(second)
    pairs = list(zip(tickets_of(first), tickets_of(second), strict=True))
    assert pairs
    for one, other in pairs:
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def resume_and_compare(name):
    """Resume the run in `out`, compare it with the whole one, and put it away under a name."""
    assert not Path("out/metrics.json").exists()
    main(["--resume", "out"])
    assert_equal_runs("whole", "out")
    Path("out").rename(name)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
