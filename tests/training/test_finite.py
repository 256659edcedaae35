"""Steps that are not finite: left out, or told of with the layer that shows it first."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from refusals import command
from small_steps import CPU, batches, cross_entropy, everything, network_for
from torch import nn

from sparse_engine.errors import RunFailure
from sparse_engine.runs.files import load_file
from sparse_engine.train import main
from sparse_engine.training import finite
from sparse_engine.training.finite import FiniteGuard, broken_member
from sparse_engine.training.network import build_network
from sparse_engine.training.step import TrainingStep
from sparse_engine.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("own_folder")
FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
# Weight decay this strong multiplies every weight by -2 in each step.
BLOW_UP = ["--lr", "1e-6", "--momentum", "0", "--weight-decay", "3e6", "--epochs", "20"]
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def member():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Softmax(-1))


def reason_for(members, images=lambda: X):
    with torch.no_grad():
        predicted = [(model(X), None) for model in members]
    return broken_member(members, predicted, lambda: (images(), None), 7)


def test_sound_members_need_no_images():
    assert reason_for([member(), member()], images=pytest.fail) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_layer_of_the_broken_member_is_named(value):
    sound, broken = member(), member()
    with torch.no_grad():
        broken[2].bias[0] = value
    reason = reason_for([sound, broken])
    assert reason == "predictions are not finite at step 7; first layer with such an output: 2"
    assert not broken.training


def test_broken_images_are_told_apart():
    broken, x = member(), X.clone()
    with torch.no_grad():
        broken[0].bias[0] = math.nan
    x[0, 0] = math.inf
    assert reason_for([broken], lambda: x).endswith(": the input images")


def assert_last_checkpoint_is_good(step):
    state = load_file(Path("run/last.pt"))
    assert 0 < state["progress"]["step"] <= step
    values = [v for v in state["model"].values() if v.is_floating_point()]
    assert all(bool(torch.isfinite(v).all()) for v in values)
    assert not Path("run/metrics.json").exists()
    assert not list(Path("run").glob("*.part"))


def test_a_run_that_blows_up_keeps_its_last_good_checkpoint():
    done = command("train", *FLAGS, "--method", "static", *BLOW_UP, "--out", "run")
    assert done.returncode == 1
    line = re.fullmatch(
        r"failed: (the loss is|predictions are) not finite at step (\d+); first layer with such an "
        r"output: .+; any checkpoint is from before; try a lower --lr",
        done.stderr.splitlines()[-1],
    )
    assert line, done.stderr
    assert_last_checkpoint_is_good(int(line[2]))


@pytest.mark.parametrize("layer", ["hidden1", "hidden2", "classifier"])
@pytest.mark.parametrize(
    ("after", "message"), [(7, "the loss is not finite at step 7"), (10, "predictions are not")]
)
def test_step_and_layer_are_named(layer, after, message, monkeypatch):
    train_step = Trainer._train_step

    def break_layer(self, phase):
        train_step(self, phase)
        if self.progress.step + 1 == after:
            next(self.network.model.get_submodule(layer).parameters()).data.fill_(math.nan)

    monkeypatch.setattr(Trainer, "_train_step", break_layer)
    with pytest.raises(RunFailure, match=f"{message}.*: {layer}; any checkpoint is from"):
        main([*FLAGS, "--method", "rigl", "--epochs", "3", "--out", "run"])
    assert_last_checkpoint_is_good(5)
    assert len(Path("run/metrics.csv").read_text().splitlines()) == 2


def test_a_bad_step_is_left_out():
    networks = []
    for skipped in (False, True):
        torch.manual_seed(0)
        network = network_for()
        step = TrainingStep(network, cross_entropy, guard := FiniteGuard(CPU, allowed=1))
        network.model.train()
        for number, (x, y) in enumerate(batches(5)):
            if number == 2 and not skipped:
                continue
            step(x * torch.nan if number == 2 else x, y)
        networks.append(network)
        assert guard.skipped() == skipped
        assert guard.fatal_step() is None
    counters = {k for k in everything(networks[0]) if k.endswith("num_batches_tracked")}
    one, other = (everything(n) for n in networks)
    assert [k for k in one if k not in counters and not torch.equal(one[k], other[k])] == []


def test_nothing_is_updated_after_one_bad_step_too_many():
    network = network_for()
    step = TrainingStep(network, cross_entropy, guard := FiniteGuard(CPU, allowed=1))
    for number, (x, y) in enumerate(batches(7)):
        step(x * torch.nan if number in (2, 4) else x, y)
        if number == 3:
            before = {n: p.detach().clone() for n, p in network.model.named_parameters()}
    assert guard.fatal_step() == 4
    assert all(torch.equal(p, before[n]) for n, p in network.model.named_parameters())


def run_with_bad_gradients(monkeypatch, bad, *flags):
    build = build_network

    def build_and_break(*args):
        network = build(*args)
        steps = iter(range(1000))
        network.model.classifier.bias.register_hook(
            lambda g: g * torch.inf if next(steps) in bad else g
        )
        return network

    monkeypatch.setattr("sparse_engine.training.training_run.build_network", build_and_break)
    main([*FLAGS, "--method", "static", "--epochs", "3", *flags])


def test_a_run_fails_at_a_bad_gradient(monkeypatch):
    with pytest.raises(
        RunFailure,
        match="a gradient is not finite at step 7; first layer in backward with one: classifier; "
        "any checkpoint is from before",
    ):
        run_with_bad_gradients(monkeypatch, range(7, 99), "--out", "run")


def test_a_run_may_leave_out_some_steps(monkeypatch, capsys):
    run_with_bad_gradients(monkeypatch, (3, 7), "--out", "run", "--skip-nonfinite", "2")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["skipped_steps"] == 2
    with pytest.raises(RunFailure, match="at step 7"):
        run_with_bad_gradients(monkeypatch, (3, 7), "--out", "other", "--skip-nonfinite", "1")


def test_the_scale_of_fp16_follows_overflow(monkeypatch):
    monkeypatch.setattr(finite, "GROWTH_STEPS", 3)
    guard = FiniteGuard(CPU, scaling=True)
    scales = []
    for bad in (1, 1, 0, 0, 0, 0, 0, 0, 1):
        guard.judge(torch.tensor(1.0), [torch.tensor([torch.inf if bad else 1.0])])
        guard.adapt()
        scales.append(float(guard.scale) / finite.FIRST_SCALE)
    assert scales == [0.5, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 1.0, 0.5]
    assert guard.skipped() == 0


def test_a_scale_below_one_is_a_failure():
    guard = FiniteGuard(CPU, scaling=True)
    for _ in range(30):
        guard.judge(torch.tensor(1.0), [torch.tensor([torch.inf])])
        guard.adapt()
    assert guard.fatal_step() == 17
