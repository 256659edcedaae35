"""Runs whose members train as one network: equal to one after another, resumed, refused."""

import functools
import json
import math
import os
import signal
from pathlib import Path
from statistics import fmean

import pytest
import torch
from resumed_runs import (
    assert_equal_runs,
    kill_within_an_epoch,
    resume_and_compare,
    rows_of,
    tickets_of,
    train_and_kill,
)
from tape import use_tapes

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError, RunFailure, Stopped
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs.files import load_file, save_file
from sparse_engine.train import main
from sparse_engine.training.grouped import GroupedNetwork
from sparse_engine.training.run import check_parallel
from sparse_engine.training.trainer import Trainer

MEMBERS, EPOCHS, STEPS = 3, 2, 5  # epochs of a member, steps of an epoch
FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
FLAGS += ["--distribution", "erk"]
DST = ["--method", "dst-ensemble", "--epochs", "6", "--sparsity", "0.5", "--update-interval", "2"]
# A rate this low keeps rounding from growing through ReLUs until a block's rank changes.
CONV = ["--model", "wrn10-1", "--lr", "0.001"]
GROUPED = ["--parallel", "grouped"]
pytestmark = pytest.mark.usefixtures("own_folder")


def train(out, *flags):
    main([*FLAGS, "--out", out, *flags])


def result_of(out):
    return json.loads(Path(out, "metrics.json").read_text())


def in_order(ticket):
    """Return a ticket with its blocks sorted: where two scores are close, slots may differ."""
    ordered = dict(ticket)
    for name in ticket:
        if name.endswith(".block_ids"):
            values = name.replace("block_ids", "values")
            ordered[name], order = ticket[name].sort()
            ordered[values] = ticket[values][order]
    return ordered


def assert_close_tickets(first, second, tolerance):
    pairs = list(zip(tickets_of(first), tickets_of(second), strict=True))
    assert len(pairs) == MEMBERS
    for one, other in pairs:
        one, other = in_order(one), in_order(other)
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=tolerance, atol=tolerance)
    for number, ticket in enumerate(tickets_of(second)[1:]):
        assert any(not torch.equal(v, tickets_of(second)[number][n]) for n, v in ticket.items())


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        (["--topology", "static"], 1e-5),
        (["--topology", "set"], 1e-5),
        (["--topology", "rigl", "--label-smoothing", "0.1"], 1e-5),
        (["--topology", "granet", "--start-sparsity", "0.2"], 1e-5),
        (["--topology", "rigl", "--select", "validation"], 1e-5),
        (["--topology", "rigl", "--weight-init", "fan-in", "--backend", "native"], 1e-5),
        (["--topology", "set", "--norm-decay", "off", "--deterministic", *CONV], 1e-4),
        (["--topology", "set", "--dtype", "bf16"], 2e-3),
        # A seed with which no two blocks are as strong as fp16 can tell.
        (["--topology", "set", "--dtype", "fp16", "--seed", "1"], 2e-3),
        (["--method", "deep-ensemble", "--sparsity", "0", "--update-interval", "9"], 1e-5),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, list) else "",
)
def test_equals_members_one_after_another(flags, tolerance):
    train("apart", *DST, *flags)
    train("grouped", *DST, *flags, *GROUPED)
    assert_close_tickets("apart", "grouped", tolerance)
    apart, grouped = result_of("apart"), result_of("grouped")
    for key in ("train_flops", "train_flops_ratio", "test_flops_ratio", "parameters", "bytes"):
        assert grouped[key] == apart[key], key
    assert grouped["member_accuracy"] == pytest.approx(apart["member_accuracy"], abs=2.1 / 360)
    rows = rows_of("grouped")
    assert [row["phase"] for row in rows] == ["members 1 to 3"] * EPOCHS
    assert len(rows_of("apart")) == MEMBERS * EPOCHS
    for number, row in enumerate(rows):
        each = rows_of("apart")[number::EPOCHS]
        assert {row["learning_rate"]} == {own["learning_rate"] for own in each}
        for key, allowed in (("train_loss", 0.01), ("nll", 0.01), ("exploration_rate", 1e-5)):
            mean = fmean(float(own[key]) for own in each)
            assert float(row[key]) == pytest.approx(mean, abs=allowed), key
        mean = fmean(float(own["accuracy"]) for own in each)
        assert float(row["accuracy"]) == pytest.approx(mean, abs=2.1 / 360)


def test_each_member_keeps_its_own_best_epoch():
    """Rates this high let accuracies fall, at other epochs in other members."""
    flags = [*DST, "--epochs", "12", "--lr", "1.5", "--select", "validation", "--topology", "set"]
    train("apart", *flags)
    train("grouped", *flags, *GROUPED)
    accuracies = [float(row["accuracy"]) for row in rows_of("apart")]
    each = [accuracies[first : first + 4] for first in range(0, 12, 4)]
    assert len({own.index(max(own)) for own in each}) > 1, each
    assert_close_tickets("apart", "grouped", 1e-3)


@pytest.mark.parametrize(
    "flags",
    [
        ["--topology", "rigl", "--dtype", "fp16", "--dropout", "0.2"],
        ["--topology", "granet", "--start-sparsity", "0.2", "--select", "validation"],
        ["--topology", "set", *CONV, "--downsample-rate", "0.4", "--members", "2", "--epochs", "4"],
        ["--topology", "rigl", "--start", "snip", "--sparsity", "0.8"],
    ],
    ids=lambda flags: flags[1],
)
def test_a_resumed_run_equals_an_uninterrupted_one(flags, monkeypatch):
    flags = [*FLAGS, *DST, *flags, *GROUPED]
    main([*flags, "--out", "whole"])
    kill_within_an_epoch(monkeypatch, 3, *flags)
    resume_and_compare("within")
    train_and_kill(monkeypatch, 2, *flags, before=True)
    resume_and_compare("before-2")


def test_a_signal_stops_a_run_with_a_checkpoint(monkeypatch):
    train_step = Trainer._train_step

    def interrupt(self, phase):
        train_step(self, phase)
        if self.progress.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    train("whole", *DST, *GROUPED)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupt)
        with pytest.raises(Stopped, match="at step 7; continue with --resume run"):
            train("run", *DST, *GROUPED)
    main(["--resume", "run"])
    assert_equal_runs("whole", "run")


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_replays_equal_steps(dtype, monkeypatch):
    """Through topology updates, whose lists of the group are written in place."""
    flags = [*DST, "--topology", "rigl", "--dtype", dtype, *GROUPED, "--update-interval", "3"]
    train("plain", *flags)
    use_tapes(monkeypatch)
    monkeypatch.setattr(Trainer, "_uses_graph", True)
    recorded, run = [], Trainer._close_epoch

    def watch(self, *arguments):
        recorded.append(self.step._graph.is_recorded)
        run(self, *arguments)

    monkeypatch.setattr(Trainer, "_close_epoch", watch)
    train("replayed", *flags)
    assert recorded == [True] * EPOCHS
    assert_equal_runs("plain", "replayed")


def test_a_compiled_run_equals_a_plain_one(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    train("plain", *DST, *GROUPED)
    train("compiled", *DST, *GROUPED, "--compile")
    assert_close_tickets("plain", "compiled", 1e-5)


def break_a_member(monkeypatch, steps):
    """Make the gradient of the second member's classifier infinite in some steps."""
    fresh = Trainer.start_member

    def start_and_break(self, *arguments):
        fresh(self, *arguments)
        assert isinstance(self.network, GroupedNetwork)
        weight = self.network.model.network.get_submodule("classifier").bias
        number, factor = iter(range(1000)), torch.ones(MEMBERS, len(weight) // MEMBERS)
        factor[1] = math.inf
        weight.register_hook(lambda g: g * factor.flatten() if next(number) in steps else g)

    monkeypatch.setattr(Trainer, "start_member", start_and_break)


def test_a_run_fails_at_a_bad_gradient_of_one_member(monkeypatch):
    break_a_member(monkeypatch, range(7, 99))
    with pytest.raises(
        RunFailure,
        match=r"a gradient is not finite at step 7; first layer in backward with one: .*classifier;"
        r" any checkpoint is from before",
    ):
        train("run", *DST, *GROUPED)


def test_a_run_may_leave_out_some_steps(monkeypatch):
    break_a_member(monkeypatch, (3, 7))
    train("run", *DST, *GROUPED, "--skip-nonfinite", "2")
    assert result_of("run")["skipped_steps"] == 2
    assert all(v.isfinite().all() for ticket in tickets_of("run") for v in ticket.values())


def test_a_member_whose_weights_break_is_found(monkeypatch):
    train_step = Trainer._train_step

    def spoil(self, phase):
        train_step(self, phase)
        if self.progress.step == STEPS - 1:
            self.network.members[2].get_submodule("hidden1").bias.data.fill_(math.nan)

    monkeypatch.setattr(Trainer, "_train_step", spoil)
    with pytest.raises(RunFailure, match="at step 5; first layer with such an output: hidden1"):
        train("run", *DST, *GROUPED)


def test_checkpoints_hold_members_as_they_are_alone(monkeypatch):
    kill_within_an_epoch(monkeypatch, 3, *DST, *GROUPED)
    state = load_file(Path("out/last.pt"))
    names = {name.partition(".")[0] for name in state["model"]}
    assert names == {"0", "1", "2"}
    state["model"]["1.hidden1.block_ids"] += 10**6
    save_file(state, Path("out/last.pt"))
    with pytest.raises(InputError, match=r"does not fit the data: .*1\.hidden1"):
        main(["--resume", "out"])


def test_checkpoints_of_before_say_one_for_one(monkeypatch):
    flags = ["--method", "rigl", "--epochs", "3", "--select", "validation"]
    train("whole", *flags)
    train_and_kill(monkeypatch, 2, *flags)
    state = load_file(Path("out/last.pt"))
    [accuracy], [best] = state["accuracy"], state["best"]
    save_file({**state, "accuracy": accuracy, "best": best}, Path("out/last.pt"))
    main(["--resume", "out"])
    assert_equal_runs("whole", "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "edst", "--epochs", "9"], "depend on each other, of dst-ensemble or deep-en"),
        (["--method", "sup-tickets", "--epochs", "16"], "those of 'sup-tickets' do, or it has no"),
        (["--method", "rigl"], "those of 'rigl' do, or it has none"),
        (["--topology", "snfs"], "--topology snfs moves them between layers; use static, set"),
        (["--members", "1"], "needs two members or more, found --members 1"),
        (["--epochs", "7"], "7 are no multiple of 3; use --epochs 6 or 9"),
        (["--epochs", "2"], "2 are no multiple of 3; use --epochs 3"),
        (["--fuse", "on"], "--fuse on exclude each other; leave --fuse out"),
        (["--model", "torchvision/shufflenet_v2_x0_5"], "'expand' cannot be grouped; run the mem"),
        (["--start", "snip", "--sparsity", "0.1"], "'hidden1' is sparse in some members only; "),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_what_cannot_be_grouped_is_refused(flags, message):
    with pytest.raises(InputError, match=message) as error:
        train("out", *DST, *GROUPED, *flags)
    assert "\n" not in str(error.value)
    assert not Path("out").exists()


def test_several_processes_are_refused():
    config = resolve(Config(method="dst-ensemble", parallel="grouped"))
    with pytest.raises(InputError, match="--parallel grouped is for one process, found 2; --par"):
        check_parallel(config, 2)
