"""What happens in training: blocks, learning rates, and which epoch becomes a ticket."""

from dataclasses import replace

import pytest
import torch
from finished_runs import column, config_of, same, same_blocks, train_with
from resumed_runs import rows_of, tickets_of

from sparse_engine.data.catalog import TABLE
from sparse_engine.data.load import load_dataset
from sparse_engine.data.loader import split_validation
from sparse_engine.data.splits import batches
from sparse_engine.evaluation.metrics import (
    accuracy,
)
from sparse_engine.evaluation.predict import predict
from sparse_engine.training import run as job
from sparse_engine.training import trainer
from sparse_engine.training.network import build_network, dense_model, plan_network
from sparse_engine.training.trainer import Trainer

METHODS = ("dense", "static", "set", "rigl", "dst-ensemble", "edst")
# 1437 training images, so 5 steps an epoch; 9 epochs of EDST are 3 + 2 + 2 + 2.
FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def run(capsys):
    """Train with some flags into the folder `out`; return the JSON object."""
    return train_with(FLAGS, capsys)


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


def test_epochs_without_an_evaluation_change_nothing_else(run):
    """Epochs 3 and 5, 7, 9 end phases; 6 is a multiple."""
    usual = run("usual", "--epochs", "9")
    seldom = run("seldom", "--epochs", "9", "--evaluate-every", "6")
    assert all(map(same, tickets_of("usual"), tickets_of("seldom")))
    assert usual["accuracy"] == seldom["accuracy"]
    known = [(row["nll"], row["accuracy"]) for row in rows_of("usual")]
    found = [(row["nll"], row["accuracy"]) for row in rows_of("seldom")]
    ends = (3, 5, 6, 7, 9)
    assert found == [pair if n in ends else ("", "") for n, pair in enumerate(known, 1)]


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
    run("out", "--method", method, "--epochs", str(epochs), "--lr", "0.1")
    assert [row["phase"] for row in rows_of("out")] == phases
    assert column("out", "learning_rate") == pytest.approx(rates)


@pytest.mark.parametrize("method", ["set", "rigl", "edst", "dst-ensemble"])
def test_topology_changes_in_the_epochs_that_have_updates(method, run):
    epochs = {"edst": 9, "dst-ensemble": 12}.get(method, 8)
    # Of many blocks some are always new.
    flags = ("--epochs", str(epochs), "--drop-schedule", "constant", "--block", "4x4")
    run("out", "--method", method, *flags)
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
    result = run("first", *flags)
    shuffle_test_labels(monkeypatch)
    other = run("second", *flags)
    assert all(map(same, tickets_of("first"), tickets_of("second")))
    assert result["nll"] != other["nll"]
    assert {row["split"] for row in rows_of("first")} == {
        "validation" if select == "validation" else "test"
    }


def test_select_validation_keeps_the_best_epoch(run, monkeypatch):
    accuracies = iter([0.9, 0.9, 0.9, 0.2, 0.4, 0.5, 0.3, 0.6, 0.6])
    monkeypatch.setattr(trainer, "accuracy", lambda *arguments, log: next(accuracies))
    states, close = [], Trainer._close_epoch

    def watch(self, *arguments):
        state = self.network.model.state_dict().items()
        states.append({k: v.clone() for k, v in state if not k.endswith("block_check")})
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
    by_hand = accuracy(*predict(model, batches(held_out, data.info, 512, CPU, 0)), log=True)
    assert f"{by_hand:.6f}" == max(row["accuracy"] for row in rows_of("out"))
