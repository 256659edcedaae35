"""A run says what its step takes beside the dense network's, in numbers that agree."""

import json
from dataclasses import replace

import pytest
import torch

from sparse_engine.config.config import Config
from sparse_engine.data.load import load_dataset
from sparse_engine.methods.resolve import resolve
from sparse_engine.models.catalog import narrower
from sparse_engine.train import main
from sparse_engine.training import run
from sparse_engine.training.costs import planned_densities
from sparse_engine.training.result import backend_shares, times_in_words
from sparse_engine.training.times import step_times
from sparse_kernels.cpu.library import library

TINY = ("--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", None).info


def test_a_run_tells_its_times(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "is_comparable", step_times.is_comparable)
    monkeypatch.setattr(step_times, "SECONDS", 0.0)  # one round
    main([*TINY, "--method", "rigl", "--epochs", "1", "--out", str(tmp_path / "run")])
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    ours, dense = result["seconds_per_step"], result["dense_seconds_per_step"]
    assert min(ours, dense) > 0
    assert result["time_ratio"] == ours / dense
    assert result["train_time_ratio"] == pytest.approx(ours / dense / result["dense_epochs"])
    assert (result["narrow_model"] is None) == (result["narrow_seconds_per_step"] is None)
    told = next(line for line in lines if line.startswith("a step takes"))
    assert f"{result['time_ratio']:.2f} of its time" in told
    assert lines.index(told) < lines.index("")


def test_a_dense_network_that_does_not_fit_costs_no_result(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, "is_comparable", lambda config, processes: True)
    monkeypatch.setattr(run, "step_times", full)
    main([*TINY, "--method", "static", "--epochs", "1", "--out", str(tmp_path / "run")])
    printed = capsys.readouterr()
    assert "no memory for a dense step" in printed.err
    result = json.loads(printed.out.splitlines()[-1])
    assert result["accuracy"] > 0
    assert result["time_ratio"] is None
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == result


@pytest.mark.parametrize("method", ["edst", "granet", "lottery", "mimo"])
def test_layers_have_the_densities_of_the_run_on_average(method, digits):
    config = resolve(Config(method=method, model="mlp", block="8x8", epochs=12, device="cpu"))
    phases = run.plan_phases(config, 1437)
    with torch.device("meta"):
        model = run.dense_model(config, digits)
    densities = planned_densities(config, model, phases)
    mean = step_times.at_mean_density(config, digits, phases, densities)
    if method == "edst":
        assert mean.densities == pytest.approx(densities.phases[0])
    # Lotteries and GraNet begin denser than they end; MIMO is dense.
    assert 1 - mean.sparsity > (0.2 if method in ("granet", "lottery") else 0.19)
    assert (mean.sparsity == 0) == (method == "mimo")
    found = step_times.step_times(config, digits, torch.device("cpu"), phases, densities)
    assert min(found.seconds, found.dense) > 0


def test_what_cannot_be_compared_is_not(digits):
    config = resolve(Config(model="mlp", members=2))
    assert step_times.is_comparable(config, 1)
    assert not step_times.is_comparable(config, 2)
    for other in ({"method": "dense"}, {"no_compare": True}, {"parallel": "members"}):
        assert not step_times.is_comparable(replace(config, **other), 1)


def test_the_default_run_is_one_for_which_kernels_pay(digits):
    if library() is None:
        pytest.skip("the native kernels cannot be built here")
    config = resolve(Config(device="cpu"))
    costs = run.run_costs(config, digits, run.plan_phases(config, 1437))
    shares = backend_shares(config, torch.device("cpu"), costs)
    assert shares["native"] >= 0.8


def test_what_runs_masked_says_so_and_what_to_change():
    times = step_times.StepTimes(0.2, 0.1, 3, 0.0).result(resolve(Config()))
    result = {"train_flops_ratio": 0.3, "dense_epochs": 40, "epochs": 72, **times}
    words = times_in_words({**result, "kernel_flops_share": 0.1, "backend": "masked+native"})
    assert "2.00 of its time (FLOPs: 0.17)" in words
    assert "90% of the sparse layers' FLOPs are dense ones here (masked)" in words
    assert "--block" in words
    plain = {**result, "kernel_flops_share": 1.0, "backend": "native"}
    assert "masked" not in times_in_words(plain)
    assert "waited" not in times_in_words(plain)
    assert "waited for a core in 40% of their time" in times_in_words(plain | {"core_wait": 0.4})


def test_a_narrower_model_has_a_share_of_the_flops():
    assert narrower("wrn16-8", 0.25) == "wrn16-4"
    assert narrower("wrn16-8", 0.3) == "wrn16-4"
    assert narrower("wrn16-1", 0.3) is None
    assert narrower("wrn16-8", 1.2) is None
    assert narrower("resnet18", 0.3) is None
