"""Runs with budgets of time or FLOPs: decided once, saved, and used without measuring again."""

import json
import sys
from pathlib import Path

import pytest
import torch

from sparse_engine.config.flags import run_command
from sparse_engine.runs.files import load_file
from sparse_engine.sparsity.time_budget import TimeCurve
from sparse_engine.train import main
from sparse_engine.training.times import budget
from sparse_engine.training.trainer import Trainer

FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
TIMED = ["--distribution", "timed", "--time-budget", "0.3"]
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """Times are invented: a fifth as overhead, narrow layers slower; return what was asked for."""
    calls = []

    def times(plans, problems, model, device, dtype):
        calls.append((plans, problems, device, dtype))
        return {
            plan.name: TimeCurve(
                (plan.group, plan.total - 1, plan.total),
                tuple((0.1 + 0.9 * share) * plan.weights for share in (0.0, 1.0, 1.0)),
            )
            for plan in plans
        }

    monkeypatch.setattr(budget, "measure_layer_times", times)
    return calls


def never(*arguments):
    raise AssertionError("measured again")


@pytest.fixture
def run(capsys):
    """Run a command; return its JSON object."""

    def call(*arguments):
        main([*FLAGS, *arguments])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def saved(out):
    return json.loads(Path(out, "config.json").read_text())


def tickets_of(out):
    return [load_file(p, "model")["model"] for p in sorted(Path(out).glob("member_*.pt"))]


def kept_weights(out):
    """Return the share of weights in blocks, by what a run's first ticket holds."""
    state = tickets_of(out)[0]
    values = sum(v.numel() for name, v in state.items() if name.endswith("values"))
    whole = sum(v.numel() for name, v in state.items() if name.endswith("weight") and v.ndim > 1)
    return values + whole


def assert_same_tickets(first, second):
    pairs = list(zip(tickets_of(first), tickets_of(second), strict=True))
    assert pairs
    for one, other in pairs:
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["static", "rigl", "edst", "lottery", "granet", "mimo"])
def test_timed_decides_densities_and_sparsity(method, run, measured):
    extra = ["--start-sparsity", "0.1"] if method == "granet" else []
    result = run("--method", method, "--epochs", "12", *TIMED, *extra, "--out", "out")
    [(plans, problems, device, dtype)] = measured
    assert device.type == "cpu"
    assert dtype == torch.float32
    assert set(problems) == {plan.name for plan in plans}
    assert 0.7 < result["sparsity"] < 0.9
    config = saved("out")
    assert config["sparsity"] == result["sparsity"]
    assert set(config["densities"]) == {plan.name for plan in plans}
    # All layers are multiples of the block but the classifier, whose last blocks are padded.
    dense = sum(plan.weights for plan in plans)
    assert kept_weights("out") / dense == pytest.approx(1 - result["sparsity"], abs=0.02)


def test_a_saved_configuration_repeats_the_run_without_measuring(run, monkeypatch):
    run("--method", "rigl", "--epochs", "3", *TIMED, "--out", "first")
    monkeypatch.setattr(budget, "measure_layer_times", never)
    main(["--config", "first/config.json", "--out", "second"])
    assert_same_tickets("first", "second")
    assert saved("first") == saved("second")


def test_another_budget_decides_anew(run, measured):
    run("--method", "static", "--epochs", "1", *TIMED, "--out", "first")
    again = ["--config", "first/config.json", "--dry-run"]
    result = run(*again, "--time-budget", "0.5")
    assert len(measured) == 2
    assert result["sparsity"] < saved("first")["sparsity"] - 0.1
    # As "--block" of FLAGS is one of a budget's settings, --seed is given alone.
    main([*again, "--seed", "3"])
    assert len(measured) == 2


def test_a_resumed_run_does_not_measure(run, monkeypatch):
    flags = ["--method", "edst", "--epochs", "9", *TIMED]
    run(*flags, "--out", "whole")
    save, calls = Trainer._save_checkpoint, []

    def save_and_die(self):
        save(self)
        calls.append(self)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            main([*FLAGS, *flags, "--out", "out"])
    monkeypatch.setattr(budget, "measure_layer_times", never)
    main(["--resume", "out"])
    assert_same_tickets("whole", "out")


@pytest.mark.parametrize("distribution", ["erk", "er", "uniform"])
@pytest.mark.parametrize("model", ["mlp", "wrn16-2"])
def test_flops_are_matched(distribution, model, run, measured):
    flags = ["--method", "static", "--distribution", distribution, "--model", model, "--dry-run"]
    result = run(*flags, "--sparsity", "0.6", "--match", "flops", "--block", "4x4")
    assert 0.39 < result["test_flops_ratio"] <= 0.4
    plain = run(*flags, "--sparsity", "0.6", "--block", "4x4")
    same = run(*flags, "--sparsity", str(result["sparsity"]), "--block", "4x4")
    assert same == result
    if distribution == "erk" and model == "wrn16-2":
        assert plain["test_flops_ratio"] > 0.5
    assert not measured


def test_time_is_matched_and_saved_as_weights(run, monkeypatch):
    flags = ["--method", "static", "--epochs", "1", "--sparsity", "0.6", "--match", "time"]
    result = run(*flags, "--distribution", "uniform", "--out", "out")
    # A tenth of the dense time is left with no block at all.
    assert result["sparsity"] == pytest.approx(1 - 0.3 / 0.9, abs=0.02)
    assert (saved("out")["match"], saved("out")["densities"]) == ("params", None)
    monkeypatch.setattr(budget, "measure_layer_times", never)
    main(["--config", "out/config.json", "--out", "again"])
    assert_same_tickets("out", "again")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--distribution", "timed", "--time-budget", "0.05"], "time budget 0.05 is out of reach"),
        (["--sparsity", "0.95", "--match", "time"], "sparsity 0.95 is out of reach"),
        (["--sparsity", "0.9999", "--match", "flops"], "sparsity 0.9999 is out of reach"),
        (
            ["--method", "granet", *TIMED, "--start-sparsity", "0.9"],
            "granet prunes from --start-sparsity 0.9",
        ),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_budget_out_of_reach_is_told(arguments, message, dry, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["train", *FLAGS, *arguments, *dry])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    error = capfd.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(Path().iterdir())
