"""Bad input as a user meets it: exit code 2, one line on stderr, and nothing written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import assert_refused, assert_refused_here

from sparse_engine import evaluate, train

NO_GPU = not torch.cuda.is_available()
FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("own_folder")


NEEDS_TORCH = [
    (["--sparsity", "0.99", "--block", "32x32"], "the budget leaves a layer without a block"),
    (["--data-dir", "none"], "--data-dir none is not a folder"),
    (["--out", "full"], "output folder 'full' exists and is not empty"),
    (["--backend", "triton"], "backend 'triton' needs a CUDA GPU, found device 'cpu'"),
    (["--dataset", "broken", "--data-dir", "full"], "broken.npz"),
]


def write_full_folder():
    Path("full").mkdir()
    Path("full/broken.npz").write_bytes(b"PK\x03\x04 cut short")
    arrays = {"images": np.zeros((20, 8, 8), np.uint8), "labels": np.arange(20) % 2}
    splits = {f"{split}_{k}": v for split in ("train", "test") for k, v in arrays.items()}
    np.savez("full/own.npz", **splits)
    data = Path("full/own.npz").read_bytes()
    Path("full/cut.npz").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("arguments", "message"), NEEDS_TORCH[:2]
)  # the others below, in one process
def test_told_by_a_process_that_needs_torch(arguments, message):
    write_full_folder()
    assert_refused(message, "train", *FLAGS, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *NEEDS_TORCH,
        (["--sparsity", "0.99", "--block", "32x32", "--dry-run"], "leaves a layer without a block"),
        (["--model", "torchvision/resnet5"], "resnet5"),
        (["--dataset", "cifar10"], "cifar10 lies in files; pass --data-dir"),
        (["--dataset", "cifar10", "--data-dir", "full"], "cifar10"),
        (["--dataset", "cut", "--data-dir", "full"], "cut.npz"),
        (["--dataset", "imagefolder:full"], "full has no folder 'train'"),
        (["--dataset", "imagefolder:none", "--dry-run"], "none has no folder 'train'"),
        (["--dataset", "own", "--data-dir", "full"], "a batch of 256 cannot be drawn from 20"),
        (["--out", "full/own.npz"], "output folder 'full/own.npz' exists and is not empty"),
        (["--out", "full/own.npz/run"], "output folder 'full/own.npz/run' cannot be made"),
        (["--members", "50", "--epochs", "3"], "15 steps are too few for 51 phases"),
        (["--update-interval", "9999"], "too short for a topology update every 9999"),
        (["--validation", "1e-9", "--select", "validation"], "a validation fraction of 1e-09"),
        (["--dry-run", "--backend", "triton"], "backend 'triton' needs a CUDA GPU"),
        (["--tune", "--method", "dense"], "so there is nothing to tune"),
        (["--method", "treenet", "--model", "torchvision/vgg11"], "vgg11"),
        (["--method", "snapshot", "--epochs", "1", "--members", "6"], "too few for 6 phases"),
        (["--method", "lottery", "--rounds", "2", "--members", "3"], "of 2 rounds has 2 tickets"),
        (["--method", "lottery", "--rounds", "99", "--epochs", "9"], "45 steps are too few"),
        (["--method", "sup-tickets", "--epochs", "1"], "5 steps are too few for 4 phases"),
        (["--downsample-rate", "0.5"], "the model cannot take images of 4x4"),
        (["--method", "kd-ticket", "--teacher", "none"], "'none' is not a run folder"),
        (["--method", "kd-ticket", "--teacher", "full"], "'full' is not a run folder"),
    ],
)
def test_told_before_anything_is_written(arguments, message, monkeypatch, capfd):
    write_full_folder()
    assert_refused_here(message, monkeypatch, capfd, train.main, *FLAGS, *arguments)


@pytest.mark.skipif(not NO_GPU, reason="needs a machine without a GPU")
@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_a_device_that_is_absent(arguments, monkeypatch, capfd):
    message = "device 'cuda' is not available on this machine; use --device cpu"
    flags = ["--device", "cuda", *arguments]
    assert_refused_here(message, monkeypatch, capfd, train.main, *flags)


def write_finished_run(capfd):
    train.main([*FLAGS, "--method", "static", "--epochs", "1", "--out", "run"])
    capfd.readouterr()


def remove_tickets():
    Path("run/member_1.pt").unlink()


def truncate_ticket():
    Path("run/member_1.pt").write_bytes(Path("run/member_1.pt").read_bytes()[:999])


def checkpoint_as_ticket():
    Path("run/last.pt").rename("run/member_1.pt")


def ticket_of_another_model():
    settings = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps({**settings, "model": "wrn10-1"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_tickets, "run 'run' has no tickets yet (no member_K.pt)"),
        (truncate_ticket, "checkpoint 'run/member_1.pt' is truncated or not a checkpoint"),
        (checkpoint_as_ticket, "'run/member_1.pt' is of another kind: it has no member"),
        (ticket_of_another_model, "'run/member_1.pt' does not fit the configuration"),
    ],
)
def test_evaluate_refuses_runs_without_good_tickets(damage, message, monkeypatch, capfd):
    write_finished_run(capfd)
    damage()
    assert_refused_here(message, monkeypatch, capfd, evaluate.main, "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ood", "svnh"], "unknown data set 'svnh'; did you mean 'svhn'?"),
        (["--ood", "svhn"], "svhn lies in files; pass --data-dir"),
        (["--ood", "empty", "--data-dir", "full"], "test_images is empty (shape (0, 1, 8, 8))"),
        (["--ood", "cut", "--data-dir", "full"], "cut.npz"),
    ],
)
def test_evaluate_refuses_foreign_images_it_cannot_show(arguments, message, monkeypatch, capfd):
    write_finished_run(capfd)
    write_full_folder()
    arrays = {f"{s}_images": np.zeros((n, 8, 8), np.uint8) for s, n in (("train", 2), ("test", 0))}
    labels = {f"{s}_labels": np.zeros(n, int) for s, n in (("train", 2), ("test", 0))}
    np.savez("full/empty.npz", **arrays, **labels)
    flags = ["run", *arguments, "--out", "found.json"]
    assert_refused_here(message, monkeypatch, capfd, evaluate.main, *flags)
