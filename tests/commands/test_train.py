"""Whole training runs, in this process: their output, their folder and their tickets."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_engine import TicketEnsemble
from sparse_engine.config.config import Config
from sparse_engine.config.values import read_config_file
from sparse_engine.data.catalog import TABLE
from sparse_engine.data.load import load_dataset
from sparse_engine.data.loader import split_validation
from sparse_engine.evaluation.metrics import (
    accuracy,
    expected_calibration_error,
    negative_log_likelihood,
)
from sparse_engine.evaluation.predict import batches, predict
from sparse_engine.train import main
from sparse_engine.training import run as job
from sparse_engine.training import trainer
from sparse_engine.training.network import build_network, dense_model, plan_network
from sparse_engine.training.trainer import Trainer

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


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Train with some flags into the folder `out`; return the JSON object."""

    def call(out, *arguments):
        main([*FLAGS, "--out", out, *arguments])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def rows_of(out):
    with Path(out, "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(out, name):
    return [float(row[name]) for row in rows_of(out)]


def tickets_of(out):
    paths = sorted(Path(out).glob("member_*.pt"))
    return [torch.load(path, weights_only=True)["model"] for path in paths]


def config_of(out):
    return Config(**read_config_file(f"{out}/config.json"))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def same_blocks(first, second):
    ids = [name for name in first if name.endswith("block_ids")]
    assert ids
    return all(set(first[n].tolist()) == set(second[n].tolist()) for n in ids)


def assert_equal_runs(first, second):
    assert len(tickets_of(first)) == len(tickets_of(second)) > 0
    assert all(map(same, tickets_of(first), tickets_of(second)))
    results = [json.loads(Path(out, "metrics.json").read_text()) for out in (first, second)]
    for found in (*results, *rows_of(first), *rows_of(second)):
        found.pop("train_seconds")
        found.pop("peak_memory_bytes", None)
    assert results[0] == results[1]


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
    found = run("out", "--method", method, "--epochs", str(epochs))
    members = 3 if method in ("dst-ensemble", "edst") else 1
    assert set(found) >= KEYS
    assert (found["method"], found["dataset"], found["model"]) == (method, "digits", "mlp")
    assert (found["device"], found["sparsity"]) == ("cpu", 0.0 if method == "dense" else 0.8)
    assert len(found["member_accuracy"]) == members
    assert all(0 <= a <= 1 for a in [found["accuracy"], found["ece"], *found["member_accuracy"]])
    assert min(found["nll"], found["train_seconds"], found["peak_memory_bytes"]) > 0
    assert found["train_flops_ratio"] == 1 if method == "dense" else found["train_flops_ratio"] < 1

    names = {"config.json", "kernels.json", "metrics.csv", "metrics.json", "lock"}
    names |= {"last.pt", "previous.pt"}
    names |= {f"member_{number}.pt" for number in range(1, members + 1)}
    assert {path.name for path in Path("out").iterdir()} == names
    assert json.loads(Path("out/metrics.json").read_text()) == found
    rows = rows_of("out")
    assert list(rows[0]) == COLUMNS
    assert [int(row["epoch"]) for row in rows] == list(range(1, epochs + 1))
    assert [int(row["step"]) for row in rows] == list(range(5, 5 * epochs + 1, 5))
    assert {row["split"] for row in rows} == {"test"}


def test_the_metrics_are_those_of_the_mean_probabilities(run):
    found = run("out", "--epochs", "9", "--sparsity", "0.5", "--block", "4x4")
    members, labels = predictions_by_hand("out")
    mean = members.double().mean(0)
    assert found["accuracy"] == accuracy(mean, labels)
    assert found["member_accuracy"] == [accuracy(p, labels) for p in members]
    assert found["nll"] == pytest.approx(negative_log_likelihood(mean, labels), rel=1e-5)
    assert found["ece"] == pytest.approx(expected_calibration_error(mean, labels), abs=1e-5)


def test_the_table_is_above_the_json_line(capsys):
    main([*FLAGS, "--epochs", "9"])
    lines = capsys.readouterr().out.splitlines()
    assert "run folder runs/edst-digits-1" in lines[0]
    table = [line.split("  ")[0] for line in lines[-8:-3]]
    assert table == ["member 1", "member 2", "member 3", "mean of members", "ensemble"]
    main([*FLAGS, "--epochs", "9"])
    assert "run folder runs/edst-digits-2" in capsys.readouterr().out


@pytest.mark.parametrize("method", [*METHODS[1:], "granet"])
@pytest.mark.parametrize("block", ["8x8", "1x1", "auto"])
def test_tickets_hold_the_planned_count_of_blocks(method, block, run):
    run("out", "--method", method, "--epochs", "9", "--block", block, "--sparsity", "0.6")
    with torch.device("meta"):
        plans = plan_network(config_of("out"), dense_model(config_of("out"), TABLE["digits"]))
    sparse = [plan for plan in plans if not plan.is_dense]
    assert sparse
    for ticket in tickets_of("out"):
        assert {n for n in ticket if n.endswith("block_ids")} == {
            f"{plan.name}.block_ids" for plan in sparse
        }
        for plan in sparse:
            ids = set(ticket[f"{plan.name}.block_ids"].tolist())
            assert len(ids & set(range(plan.total))) == plan.active


def test_edst_tickets_differ(run):
    run("out", "--epochs", "9")
    first, second, third = tickets_of("out")
    assert not any((same_blocks(first, second), same_blocks(second, third)))
    assert not same_blocks(first, third)


def test_edst_without_updates_keeps_its_blocks(run):
    run("out", "--epochs", "9", "--topology", "static")
    first, second, third = tickets_of("out")
    assert same_blocks(first, second)
    assert same_blocks(second, third)
    assert not same(second, third)
    assert len(set(column("out", "exploration_rate"))) == 1


def test_dst_members_differ_from_the_first_step(run, monkeypatch):
    starts, start = [], Trainer.start_member

    def watch(self, member, sparsity=None):
        start(self, member, sparsity)
        state = {k: v.clone() for k, v in self.network.model.state_dict().items()}
        starts.append((state, self.loader.batch(0)[1]))

    monkeypatch.setattr(Trainer, "start_member", watch)
    run("out", "--method", "dst-ensemble", "--epochs", "3")
    assert len(starts) == 3
    for one, other in [(0, 1), (1, 2), (0, 2)]:
        assert not same_blocks(starts[one][0], starts[other][0])
        assert not torch.equal(starts[one][1], starts[other][1])
        assert not torch.equal(*(starts[i][0]["hidden1.bias"] for i in (one, other)))


def test_static_keeps_its_blocks_and_trains_their_values(run):
    run("out", "--method", "static", "--epochs", "2", "--seed", "5")
    start = build_network(config_of("out"), TABLE["digits"], CPU).model.state_dict()
    [ticket] = tickets_of("out")
    assert same_blocks(start, ticket)
    assert not torch.equal(start["hidden1.values"], ticket["hidden1.values"])
    assert len(set(column("out", "exploration_rate"))) == 1


@pytest.mark.parametrize("rest", [[], ["--dry-run"]])
def test_a_backend_is_that_of_its_run_alone(rest, run, monkeypatch):
    for before in (None, "masked"):
        if before:
            monkeypatch.setenv("SPARSE_ENGINE_BACKEND", before)
        flags = ["--method", "static", "--block", "16x16", "--epochs", "1", *rest]
        assert run(f"out-{before}", *flags, "--backend", "gemm")["backend"] == "gemm"
        assert os.environ.get("SPARSE_ENGINE_BACKEND") == before


def test_dense_has_no_sparse_layer(run):
    run("out", "--method", "dense", "--epochs", "2")
    [ticket] = tickets_of("out")
    assert set(ticket) == set(dense_model(config_of("out"), TABLE["digits"]).state_dict())
    assert set(column("out", "exploration_rate")) == {1.0}


@pytest.mark.parametrize(
    ("method", "epochs", "phases", "rates"),
    [
        ("rigl", 8, ["rigl"] * 8, [0.1] * 4 + [0.01] * 2 + [0.001] * 2),
        ("dense", 8, ["dense"] * 8, [0.1] * 4 + [0.01] * 2 + [0.001] * 2),
        (
            "dst-ensemble",
            12,
            ["member 1"] * 4 + ["member 2"] * 4 + ["member 3"] * 4,
            3 * [0.1, 0.1, 0.01, 0.001],
        ),
        (
            "edst",
            9,
            ["explore"] * 3 + ["refine 1"] * 2 + ["refine 2"] * 2 + ["refine 3"] * 2,
            [0.1] * 3 + 3 * [0.01, 0.001],
        ),
    ],
)
def test_the_learning_rate_follows_the_phases(method, epochs, phases, rates, run):
    run("out", "--method", method, "--epochs", str(epochs))
    assert [row["phase"] for row in rows_of("out")] == phases
    assert column("out", "learning_rate") == pytest.approx(rates)


@pytest.mark.parametrize("method", ["set", "rigl", "edst", "dst-ensemble"])
def test_topology_changes_in_the_epochs_that_have_updates(method, run):
    epochs = {"edst": 9, "dst-ensemble": 12}.get(method, 8)
    run("out", "--method", method, "--epochs", str(epochs), "--drop-schedule", "constant")
    rows, epoch, before, phase_before = rows_of("out"), 0, None, None
    updates = 0
    for phase in job.plan_phases(config_of("out"), 1437):
        schedule = phase.update_schedule()
        updates = (0 if phase.begin else updates) + schedule.updates_in(phase.steps)
        for start in range(0, phase.steps, 5):
            due = any(schedule.rate(step) for step in range(start + 1, start + 6))
            escaped = start == 0 and phase_before is not None and phase_before.ends_with_gradient
            explored = float(rows[epoch]["exploration_rate"])
            if start or not phase.begin:
                assert (explored > before) == (due or escaped), rows[epoch]
            epoch, before = epoch + 1, explored
        updates += phase.ends_with_gradient
        phase_before = phase
    state = torch.load("out/last.pt", weights_only=True)
    assert state["topology"]["updates"] == updates > 0


def shuffle_test_labels(monkeypatch):
    def load(*arguments):
        data = load_dataset(*arguments)
        order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
        return replace(data, test=replace(data.test, labels=data.test.labels[order]))

    monkeypatch.setattr(job, "load_dataset", load)


@pytest.mark.parametrize("select", ["validation", "last"])
def test_the_test_split_chooses_nothing(select, run, monkeypatch):
    flags = ["--epochs", "9", "--select", select, "--sparsity", "0.5"]
    found = run("first", *flags)
    shuffle_test_labels(monkeypatch)
    other = run("second", *flags)
    assert all(map(same, tickets_of("first"), tickets_of("second")))
    assert found["nll"] != other["nll"]
    assert {row["split"] for row in rows_of("first")} == {
        "validation" if select == "validation" else "test"
    }


def test_select_validation_keeps_the_best_epoch(run, monkeypatch):
    accuracies = iter([0.9, 0.9, 0.9, 0.2, 0.4, 0.5, 0.3, 0.6, 0.6])
    monkeypatch.setattr(trainer, "accuracy", lambda *arguments: next(accuracies))
    states, close = [], Trainer._close_epoch

    def watch(self, *arguments):
        states.append({k: v.clone() for k, v in self.network.model.state_dict().items()})
        close(self, *arguments)

    monkeypatch.setattr(Trainer, "_close_epoch", watch)
    run("out", "--epochs", "9", "--select", "validation")
    for ticket, epoch in zip(tickets_of("out"), [5, 6, 8], strict=True):
        assert same(ticket, states[epoch - 1])


def test_validation_accuracy_is_that_of_images_never_trained_on(run):
    run("out", "--method", "rigl", "--epochs", "2", "--select", "validation")
    config, data = config_of("out"), load_dataset("digits", None)
    held_out = split_validation(data.train, config.validation, config.seed)[1]
    model = build_network(config, data.info, CPU).model
    model.load_state_dict(tickets_of("out")[0])
    found = accuracy(*predict(model, batches(held_out, data.info, 512, CPU, 0)))
    assert f"{found:.6f}" == max(row["accuracy"] for row in rows_of("out"))


def test_one_seed_gives_one_result(run):
    flags = ["--epochs", "9", "--sparsity", "0.5"]
    run("first", *flags, "--seed", "3")
    run("second", *flags, "--seed", "3")
    run("other", *flags, "--seed", "4")
    assert_equal_runs("first", "second")
    pairs = list(zip(tickets_of("first"), tickets_of("other"), strict=True))
    assert not any(same(one, other) or same_blocks(one, other) for one, other in pairs)


def test_a_saved_configuration_gives_the_same_result_in_a_new_folder(run, capsys):
    run("first", "--epochs", "9", "--seed", "3", "--lr", "0.05", "--dropout", "0.1")
    main(["--config", "first/config.json", "--out", "second"])
    assert_equal_runs("first", "second")
    assert Path("first/config.json").read_text() == Path("second/config.json").read_text()


def test_bf16(run):
    found = run("out", "--epochs", "9", "--dtype", "bf16")
    assert found["dtype"] == "bf16"
    assert {v.dtype for v in tickets_of("out")[0].values()} <= {torch.float32, torch.int32}


def test_unstructured_wide_resnet(run):
    flags = ["--model", "wrn16-2", "--block", "1x1", "--epochs", "1"]
    found = run("out", "--method", "rigl", *flags)
    assert found["block"] == "1x1"
    assert 0 < found["train_flops_ratio"] < 1


def test_own_arrays(run):
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = generator.integers(0, 80, (60, 12, 12, 3)) + 60 * labels[:, None, None, None]
    arrays = {"images": images.astype(np.uint8), "labels": labels}
    splits = {f"train_{k}": v[:45] for k, v in arrays.items()}
    np.savez("mine.npz", **splits, **{f"test_{k}": v[45:] for k, v in arrays.items()})
    flags = ["--dataset", "mine", "--data-dir", ".", "--batch-size", "15"]
    found = run("out", *flags, "--epochs", "9", "--lr", "0.02", "--sparsity", "0.5")
    assert (found["dataset"], len(found["member_accuracy"])) == ("mine", 3)
    assert found["accuracy"] > 0.5


@pytest.mark.parametrize("select", ["last", "validation"])
def test_image_folder(select, run):
    for name in ("train/ant", "train/bee", "val/ant", "val/bee"):
        Path("images", name).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((30, 30, 3), 40 * number, np.uint8)
            Image.fromarray(pixels).save(f"images/{name}/{number}.png")
    flags = ["--dataset", "imagefolder:images", "--workers", "0", "--batch-size", "2"]
    flags += ["--model", "torchvision/resnet18", "--block", "32x32", "--validation", "0.34"]
    found = run("out", "--method", "set", "--epochs", "1", "--select", select, *flags)
    assert found["dataset"] == "imagefolder:images"
    assert len(tickets_of("out")) == 1
