"""Whole training runs, in this process: their output, their folder and their tickets."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_runs import config_of, same, same_blocks, train_with
from PIL import Image
from resumed_runs import assert_equal_runs, rows_of, tickets_of

from sparse_engine import TicketEnsemble
from sparse_engine.data.load import load_dataset
from sparse_engine.evaluation.metrics import (
    accuracy,
    expected_calibration_error,
    negative_log_likelihood,
)
from sparse_engine.train import main
from sparse_engine.training.network import build_network

METHODS = ("dense", "static", "set", "rigl", "dst-ensemble", "edst")
KEYS = {
    *("method", "dataset", "model", "sparsity", "accuracy", "nll", "ece", "member_accuracy"),
    *("train_flops", "train_flops_ratio", "test_flops_ratio", "train_seconds"),
    *("peak_memory_bytes", "parameters", "device", "backend"),
}
COLUMNS = [
    *("epoch", "step", "phase", "learning_rate", "train_loss", "split", "nll", "accuracy"),
    *("exploration_rate", "train_seconds"),
]
# 1437 training images, so 5 steps an epoch; 9 epochs of EDST are 3 + 2 + 2 + 2.
FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def run(capsys):
    """Train with some flags into the folder `out`; return the JSON object."""
    return train_with(FLAGS, capsys)


def assert_equal_results(first, second):
    assert_equal_runs(first, second)
    results = [json.loads(Path(out, "metrics.json").read_text()) for out in (first, second)]
    measured = dict.fromkeys(("train_seconds", "peak_memory_bytes"))
    assert results[0] | measured == results[1] | measured


def predictions_by_hand(out):
    """Return probabilities [M, N, K] of a run's tickets on the digits' test split, and labels."""
    config, data = config_of(out), load_dataset("digits", None)
    models = []
    for state in tickets_of(out):
        model = build_network(config, data.info, CPU).model
        model.load_state_dict(state)
        models.append(model.eval())
    images = data.test.images.float() / 255
    x = (images - data.info.mean[0]) / data.info.std[0]
    with torch.no_grad():
        return TicketEnsemble(models).member_probabilities(x), data.test.labels


@pytest.mark.parametrize("method", [*METHODS, "snfs", "granet"])
def test_every_method_runs(method, run):
    epochs = 9 if method == "edst" else 6
    result = run("out", "--method", method, "--epochs", str(epochs))
    members = 3 if method in ("dst-ensemble", "edst") else 1
    assert set(result) >= KEYS
    assert (result["method"], result["dataset"], result["model"]) == (method, "digits", "mlp")
    assert (result["device"], result["sparsity"]) == ("cpu", 0.0 if method == "dense" else 0.8)
    assert len(result["member_accuracy"]) == members
    assert all(0 <= a <= 1 for a in [result["accuracy"], result["ece"], *result["member_accuracy"]])
    assert min(result["nll"], result["train_seconds"], result["peak_memory_bytes"]) > 0
    # Of a dense run of 40 epochs.
    share = result["train_flops_ratio"]
    assert share == pytest.approx(6 / 40) if method == "dense" else 0 < share < epochs / 40

    names = {"config.json", "data.json", "kernels.json", "metrics.csv", "metrics.json", "lock"}
    names |= {"last.pt", "previous.pt"}
    names |= {f"member_{number}.pt" for number in range(1, members + 1)}
    names |= {"blocks.csv"} if method != "dense" else set()
    assert {path.name for path in Path("out").iterdir()} == names
    assert json.loads(Path("out/metrics.json").read_text()) == result
    rows = rows_of("out")
    assert list(rows[0]) == COLUMNS
    assert [int(row["epoch"]) for row in rows] == list(range(1, epochs + 1))
    assert [int(row["step"]) for row in rows] == list(range(5, 5 * epochs + 1, 5))
    assert {row["split"] for row in rows} == {"test"}


def test_the_metrics_are_those_of_the_mean_probabilities(run):
    result = run("out", "--epochs", "9", "--sparsity", "0.5", "--block", "4x4")
    members, labels = predictions_by_hand("out")
    mean = members.double().mean(0)
    assert result["accuracy"] == accuracy(mean, labels)
    assert result["member_accuracy"] == [accuracy(p, labels) for p in members]
    assert result["nll"] == pytest.approx(negative_log_likelihood(mean, labels), rel=1e-5)
    assert result["ece"] == pytest.approx(expected_calibration_error(mean, labels), abs=1e-5)


def test_the_table_is_above_the_json_line(capsys):
    main([*FLAGS, "--epochs", "9"])
    lines = capsys.readouterr().out.splitlines()
    assert "run folder runs/edst-digits-1" in lines[0]
    table = [line.split("  ")[0] for line in lines[-8:-3]]
    assert table == ["member 1", "member 2", "member 3", "mean of members", "ensemble"]
    main([*FLAGS, "--epochs", "9"])
    assert "run folder runs/edst-digits-2" in capsys.readouterr().out


@pytest.mark.parametrize("rest", [[], ["--dry-run"]])
def test_a_backend_is_that_of_its_run_alone(rest, run, monkeypatch):
    for before in (None, "masked"):
        if before:
            monkeypatch.setenv("SPARSE_ENGINE_BACKEND", before)
        flags = ["--method", "static", "--block", "16x16", "--epochs", "1", *rest]
        assert run(f"out-{before}", *flags, "--backend", "native")["backend"] == "native"
        assert os.environ.get("SPARSE_ENGINE_BACKEND") == before


def test_one_seed_gives_one_result(run):
    flags = ["--epochs", "9", "--sparsity", "0.5"]
    run("first", *flags, "--seed", "3")
    run("second", *flags, "--seed", "3")
    run("other", *flags, "--seed", "4")
    assert_equal_results("first", "second")
    pairs = list(zip(tickets_of("first"), tickets_of("other"), strict=True))
    assert not any(same(one, other) or same_blocks(one, other) for one, other in pairs)


def test_a_saved_configuration_gives_the_same_result_in_a_new_folder(run, capsys):
    run("first", "--epochs", "9", "--seed", "3", "--lr", "0.05", "--dropout", "0.1")
    main(["--config", "first/config.json", "--out", "second"])
    assert_equal_results("first", "second")
    assert Path("first/config.json").read_text() == Path("second/config.json").read_text()


def test_bf16(run):
    result = run("out", "--epochs", "9", "--dtype", "bf16")
    assert result["dtype"] == "bf16"
    assert {v.dtype for v in tickets_of("out")[0].values()} <= {torch.float32, torch.int32}


def test_unstructured_wide_resnet(run):
    flags = ["--model", "wrn16-2", "--block", "1x1", "--epochs", "1"]
    result = run("out", "--method", "rigl", *flags)
    assert result["block"] == "1x1"
    assert 0 < result["train_flops_ratio"] < 1


def test_own_arrays(run):
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = generator.integers(0, 80, (60, 12, 12, 3)) + 60 * labels[:, None, None, None]
    arrays = {"images": images.astype(np.uint8), "labels": labels}
    splits = {f"train_{k}": v[:45] for k, v in arrays.items()}
    np.savez("mine.npz", **splits, **{f"test_{k}": v[45:] for k, v in arrays.items()})
    flags = ["--dataset", "mine", "--data-dir", ".", "--batch-size", "15"]
    result = run("out", *flags, "--epochs", "9", "--lr", "0.02", "--sparsity", "0.5")
    assert (result["dataset"], len(result["member_accuracy"])) == ("mine", 3)
    assert result["accuracy"] > 0.5


@pytest.mark.parametrize("select", ["last", "validation"])
def test_image_folder(select, run):
    for name in ("train/ant", "train/bee", "val/ant", "val/bee"):
        Path("images", name).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((30, 30, 3), 40 * number, np.uint8)
            Image.fromarray(pixels).save(f"images/{name}/{number}.png")
    flags = ["--dataset", "imagefolder:images", "--workers", "0", "--batch-size", "2"]
    flags += ["--model", "torchvision/resnet18", "--block", "32x32", "--validation", "0.34"]
    result = run("out", "--method", "set", "--epochs", "1", "--select", select, *flags)
    assert result["dataset"] == "imagefolder:images"
    assert len(tickets_of("out")) == 1
