"""The baselines as runs: phases, learning rates, what their networks cost, members evaluated."""

import csv
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from method_phases import phases_for
from torch import nn

from sparse_engine import evaluate
from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.data.load import load_dataset
from sparse_engine.data.splits import batches
from sparse_engine.evaluation.metrics import accuracy
from sparse_engine.evaluation.predict import predict
from sparse_engine.methods.actions import SaveTicket, StartMember
from sparse_engine.methods.learning_rate import LearningRate
from sparse_engine.methods.registry import METHODS
from sparse_engine.methods.resolve import resolve
from sparse_engine.models.members import members_of
from sparse_engine.models.workload import dense_flops
from sparse_engine.runs.model import dense_model
from sparse_engine.train import main
from sparse_engine.training.trainer import Trainer

DROPOUT = ("--dropout", "0.2")
CPU = torch.device("cpu")

BASELINES = [name for name, m in METHODS.items() if m.rule == "static" and not m.usual_sparsity]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Train with some flags; return the JSON object."""
    monkeypatch.chdir(tmp_path)

    def call(*flags, out="out"):
        small = ["--model", "wrn10-1", "--batch-size", "256", "--device", "cpu", "--out", out]
        main([*small, *flags])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


@pytest.fixture
def costs(capsys):
    """Return the JSON object of a dry run."""

    def call(*flags):
        main([*flags, "--device", "cpu", "--dry-run"])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def rates_of(phase, *shares):
    return [phase.learning_rate.at(round(s * (phase.steps - 1)), phase.steps) for s in shares]


def tickets_of(out):
    paths = sorted(Path(out).glob("member_*.pt"))
    return [torch.load(path, weights_only=True)["model"] for path in paths]


def test_deep_ensemble_phases_are_fresh_dense_runs():
    phases = phases_for(1000, method="deep-ensemble", members=4)
    assert [phase.steps for phase in phases] == [250] * 4
    assert {(p.begin, p.end) for p in phases} == {((StartMember(0.0),), (SaveTicket(),))}
    assert rates_of(phases[1], 0, 0.4, 0.6, 1) == [1, 1, 0.1, 0.01]
    assert all(phase.topology is None for phase in phases)


def test_snapshot_restarts_the_learning_rate_of_one_trajectory():
    phases = phases_for(3000, method="snapshot", members=3)
    assert [phase.steps for phase in phases] == [1000] * 3
    for phase in phases:
        assert rates_of(phase, 0, 0.5, 1) == pytest.approx([1, 0.5, 0], abs=1e-3)
    assert [phase.begin for phase in phases] == [(StartMember(0.0),), (), ()]
    assert {phase.end for phase in phases} == {(SaveTicket(),)}


def test_fge_takes_its_tickets_where_the_rate_is_lowest():
    ordinary, *cycles = phases_for(10_000, method="fge", members=4)
    dense = LearningRate(((0.0, 1.0), (0.5, 0.1), (0.75, 0.01)))
    rates = [ordinary.learning_rate.at(step, ordinary.steps) for step in range(8000)]
    assert rates == [dense.at(step, 10_000) for step in range(8000)]
    assert (ordinary.steps, ordinary.tickets) == (8000, 0)
    whole = round(2000 / 3.5)
    assert [phase.steps for phase in cycles] == pytest.approx([whole / 2, *[whole] * 3], abs=1)
    assert rates_of(cycles[0], 0, 0.5, 1) == pytest.approx([0.5, 0.3, 0.1], abs=1e-2)
    for phase in cycles[1:]:
        assert rates_of(phase, 0, 0.5, 1) == pytest.approx([0.1, 0.5, 0.1], abs=1e-2)
    assert all(phase.tickets == 1 and not phase.begin for phase in cycles)


@pytest.mark.parametrize("method", ["mc-dropout", "batch-ensemble", "mimo", "treenet"])
def test_one_network_is_trained_as_a_dense_one(method):
    [phase], [dense] = (
        phases_for(500, method=m, dropout=0.1 * (m == "mc-dropout")) for m in (method, "dense")
    )
    assert (phase.learning_rate, phase.loss) == (dense.learning_rate, dense.loss)
    assert (phase.steps, phase.begin, phase.end) == (dense.steps, dense.begin, dense.end)


@pytest.mark.parametrize(("method", "starts"), [("deep-ensemble", 3), ("snapshot", 1), ("fge", 1)])
def test_how_many_networks_there_are(method, starts, run, monkeypatch):
    firsts, start = [], Trainer.start_member

    def watch(self, member, sparsity=None):
        start(self, member, sparsity)
        weights = self.network.model.classifier.weight.detach().clone()
        firsts.append((weights, self.loader.batch(0)[1]))

    monkeypatch.setattr(Trainer, "start_member", watch)
    result = run("--method", method, "--epochs", "3")
    assert len(firsts) == starts
    for one, other in pairwise(firsts):
        assert not torch.equal(one[0], other[0])
        assert not torch.equal(one[1], other[1])
    assert len(result["member_accuracy"]) == 3
    tickets = [ticket["classifier.weight"] for ticket in tickets_of("out")]
    distances = [float((a - b).norm() / b.norm()) for a, b in pairwise(tickets)]
    assert min(distances) > 0
    # Independent networks are further apart than the tickets of one trajectory.
    assert (min(distances) > 1) == (method == "deep-ensemble")


def test_each_cycle_goes_on_where_the_last_one_ended(run, monkeypatch):
    befores, step = {}, Trainer._train_step

    def watch(self, phase):
        if self.progress.phase_step == 0:
            befores[phase.name] = self.network.model.classifier.weight.detach().clone()
        step(self, phase)

    monkeypatch.setattr(Trainer, "_train_step", watch)
    run("--method", "snapshot", "--members", "2", "--epochs", "2", "--lr", "0.1")
    assert torch.equal(befores["cycle 2"], tickets_of("out")[0]["classifier.weight"])
    with Path("out/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.00955, 0.00955], 1e-2)


@pytest.mark.parametrize("model", ["wrn10-1", "resnet8"])
@pytest.mark.parametrize("method", ["mc-dropout", "batch-ensemble", "mimo", "treenet"])
def test_a_network_is_one_ticket_and_each_member_is_measured(method, model, run, capsys):
    flags = ["--method", method, "--model", model, "--epochs", "1"]
    flags += DROPOUT if method == "mc-dropout" else ["--members", "2"]
    result = run(*flags, "--passes", "2") if method == "mc-dropout" else run(*flags)
    config = Config(**json.loads(Path("out/config.json").read_text()))
    data = load_dataset("digits", None)
    network = dense_model(config, data.info).to(memory_format=torch.channels_last)
    [ticket] = tickets_of("out")
    network.load_state_dict(ticket)
    parts = [
        predict(member, batches(data.test, data.info, 512, CPU, 0))
        for member in members_of(network)
    ]
    assert len(parts) == (1 if method == "mc-dropout" else 2)
    assert result["member_accuracy"] == [accuracy(*part, log=True) for part in parts]
    whole, labels = predict(network, batches(data.test, data.info, 512, CPU, 0))
    assert result["accuracy"] == accuracy(whole, labels, log=True)
    torch.testing.assert_close(whole.exp(), torch.stack([p.exp() for p, _ in parts]).mean(0))
    robust = ["--corruptions", "--severities", "1", "--attack", "fgsm", "--attack-images", "50"]
    evaluate.main(["out", *(robust if model == "resnet8" and method != "mc-dropout" else [])])
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["member_accuracy"] == result["member_accuracy"]
    for beyond in (again[name] for name in ("corruptions", "attacks") if name in again):
        members = beyond["members"] if "members" in beyond else beyond["fgsm"]["targets"][:-1]
        assert len(members) == 2


@pytest.mark.parametrize("method", ["batch-ensemble", "mimo", "treenet"])
def test_a_baseline_may_be_sparse(method, run):
    flags = ["--method", method, "--sparsity", "0.6", "--block", "4x4", "--epochs", "1"]
    result = run(*flags, "--members", "2", "--batch-size", "512")
    assert result["sparsity"] == 0.6
    assert set(result["backend"].split("+")) <= {"masked", "native"}
    config = Config(**json.loads(Path("out/config.json").read_text()))
    network = dense_model(config, TABLE["digits"])
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    [ticket] = tickets_of("out")
    stored = sum(ticket[f"{n}.values"].numel() for n in layers if f"{n}.values" in ticket)
    stored += sum(m.weight.numel() for n, m in layers.items() if f"{n}.weight" in ticket)
    assert stored < 0.45 * sum(m.weight.numel() for m in layers.values())


CIFAR = ("--dataset", "cifar10", "--model", "wrn28-10")


@pytest.mark.parametrize(
    ("flags", "epochs", "train", "test"),
    [
        (("deep-ensemble", "--members", "4"), 1000, 4, 4),
        (("snapshot", "--members", "6"), 250, 1, 6),
        (("fge", "--members", "5"), 250, 1, 5),
        (("mc-dropout", *DROPOUT, "--passes", "7"), 250, 1, 7),
        (("batch-ensemble", "--members", "4"), 250, 1, 4),
        (("dst-ensemble", "--topology", "static", "--sparsity", "0"), 750, 3, 3),
    ],
)
def test_flops_in_whole_networks(flags, epochs, train, test, costs):
    result = costs(*CIFAR, "--method", *flags)
    assert result["epochs"] == epochs
    assert result["train_flops_ratio"] == pytest.approx(train)
    assert result["test_flops_ratio"] == pytest.approx(test)


def layer_flops(method):
    config = resolve(Config(method=method, dataset="cifar10", model="wrn28-10"))
    with torch.device("meta"):
        return dense_flops(dense_model(config, TABLE["cifar10"]), (3, 32, 32))


def test_flops_of_mimo_are_a_wider_first_layer_and_head(costs):
    dense = layer_flops("dense")
    once = 1 + 2 * (dense["stem"] + dense["classifier"]) / sum(dense.values())
    assert 1 < once < 1.001
    for repetition in (1, 4):
        result = costs(*CIFAR, "--method", "mimo", "--batch-repetition", f"{repetition}")
        assert result["test_flops_ratio"] == pytest.approx(once)
        assert result["train_flops_ratio"] == pytest.approx(repetition * once)


def test_flops_of_treenet_count_the_trunk_once(costs):
    dense = layer_flops("dense")
    # Twelve blocks in three stages of four; the last stage and the head are in the branches.
    branch = sum(f for n, f in dense.items() if n.startswith(("blocks.8", "blocks.9", "blocks.1")))
    branch -= sum(f for n, f in dense.items() if n.startswith("blocks.1."))
    branch += dense["classifier"]
    result = costs(*CIFAR, "--method", "treenet", "--members", "3")
    expected = 1 + 2 * branch / sum(dense.values())
    assert result["test_flops_ratio"] == pytest.approx(expected)
    assert result["train_flops_ratio"] == pytest.approx(expected)
    assert 1.4 < expected < 1.7


def test_parameters_of_batch_ensemble_hardly_grow(costs):
    dense = costs(*CIFAR, "--method", "dense")
    result = costs(*CIFAR, "--method", "batch-ensemble", "--members", "4")
    assert 1 < result["parameters"] / dense["parameters"] < 1.01


@pytest.mark.parametrize("method", BASELINES)
def test_dense_unless_told_otherwise(method):
    config = resolve(Config(method=method, dropout=0.1))
    assert (config.sparsity, config.topology) == (0.0, "static")
    assert resolve(config) == config
    assert config.members == (1 if method == "mc-dropout" else 3)
