"""The training step: replays equal plain steps; bad steps are left out; fp16 scales its loss."""

import csv
import functools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tape import use_tapes

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.methods.resolve import resolve
from sparse_engine.train import main
from sparse_engine.training import finite
from sparse_engine.training.cuda_graph import Repeated, captured
from sparse_engine.training.finite import FiniteGuard
from sparse_engine.training.network import build_network
from sparse_engine.training.step import TrainingStep
from sparse_engine.training.trainer import Trainer

CPU = torch.device("cpu")
FLAGS = ["--model", "wrn10-1", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]


def network_for(**settings):
    settings = {"method": "rigl", "model": "wrn10-1", "block": "8x8", "sparsity": 0.5, **settings}
    return build_network(resolve(Config(**settings)), TABLE["digits"], CPU)


def batches(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        images = torch.randn(16, 1, 8, 8, generator=generator)
        yield images, torch.randint(10, (16,), generator=generator)


def cross_entropy(x, logits, labels):
    return F.cross_entropy(logits.float(), labels)


def everything(network):
    """Return all that training changes: weights, statistics, momenta and blocks."""
    found = {f"model.{k}": v for k, v in network.model.state_dict().items()}
    for number, state in enumerate(network.optimizer.state.values()):
        found[f"momentum.{number}"] = state["momentum_buffer"]
    return found


def assert_equal(first, second):
    one, other = everything(first), everything(second)
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def train_some(rule, graph, dtype="fp32", backend_steps=12):
    torch.manual_seed(0)
    network = network_for(method=rule, dropout=0.1)
    guard = FiniteGuard(CPU, dtype == "fp16")
    step = TrainingStep(network, cross_entropy, guard, dtype, cuda_graph=graph)
    network.model.train()
    addresses = [p.data_ptr() for p in network.model.parameters()]
    for number, (x, y) in enumerate(batches(backend_steps)):
        network.rate.fill_(0.1 / (1 + number))
        if number % 4 == 3:
            network.topology.arm()
        step(x, y)
        if number % 4 == 3:
            network.topology.update(0.5)
    assert [p.data_ptr() for p in network.model.parameters()] == addresses
    return network, step, guard


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("rule", ["set", "rigl", "static"])
@pytest.mark.parametrize("backend", ["masked", "gemm"])
def test_replays_equal_steps(rule, dtype, backend, monkeypatch):
    """Rates change and blocks are swapped between replays."""
    monkeypatch.setenv("SPARSE_ENGINE_BACKEND", backend)
    plain, _, guard = train_some(rule, graph=False, dtype=dtype)
    use_tapes(monkeypatch)
    replayed, step, other = train_some(rule, graph=True, dtype=dtype)
    assert step._graph.is_recorded
    assert_equal(plain, replayed)
    assert guard.mean() == other.mean() > 0
    assert torch.equal(guard.scale, other.scale)


def test_the_tape_notices_a_number_that_is_baked_in(monkeypatch):
    """The stand-in is no use if it would not: here the rate is no tensor."""
    use_tapes(monkeypatch)
    weight, rates = torch.zeros(3), iter([1.0, 1.0, 1.0, 1.0, 5.0])
    repeated = Repeated(lambda x: weight.add_(x, alpha=next(rates)))
    for _ in range(5):
        repeated(torch.ones(3))
    assert weight.tolist() == [5.0] * 3


def test_a_captured_function_takes_new_inputs(monkeypatch):
    use_tapes(monkeypatch)
    double = captured(lambda x, y: 2 * x + y, torch.zeros(3), torch.zeros(3))
    assert not double.is_recorded
    for number in (1.0, 2.0, 3.0):
        assert double(torch.full((3,), number), torch.ones(3)).tolist() == [2 * number + 1] * 3
    assert double.is_recorded


def test_what_cannot_be_recorded_runs_as_it_is(monkeypatch, caplog):
    plain, _, _ = train_some("set", graph=False)
    use_tapes(monkeypatch)

    def refuse(function):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr("sparse_engine.training.cuda_graph.record", refuse)
    other, _, _ = train_some("set", graph=True)
    assert_equal(plain, other)
    assert caplog.messages == [
        "the step runs without a CUDA graph: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "edst", "--members", "2", "--topology", "rigl", "--model", "mlp"],
        ["--method", "lottery", "--rounds", "1", "--rewind-point", "0.3", "--model", "mlp"],
        ["--method", "rigl", "--downsample-rate", "0.5"],
        ["--method", "mimo", "--sparsity", "0.5", "--model", "mlp"],
    ],
    ids=lambda flags: flags[1],
)
def test_runs_of_replays_equal_runs_of_steps(flags, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags = [*FLAGS, "--epochs", "5", *flags]
    main([*flags, "--out", "plain"])
    use_tapes(monkeypatch)
    monkeypatch.setattr(Trainer, "_uses_graph", True)
    main([*flags, "--out", "replayed"])
    rows = []
    for name in ("plain", "replayed"):
        with Path(name, "metrics.csv").open(newline="") as file:
            rows.append([{**row, "train_seconds": ""} for row in csv.DictReader(file)])
    assert rows[0] == rows[1]


def test_a_graph_needs_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="--cuda-graph on needs a CUDA GPU, found none"):
        main([*FLAGS, "--cuda-graph", "on", "--out", str(tmp_path / "run")])


def test_a_compiled_step_equals_a_plain_one(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    networks = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = network_for(method="set", model="mlp")
        guard = FiniteGuard(CPU)
        step = TrainingStep(network, cross_entropy, guard, compiled=compiled)
        for number, (x, y) in enumerate(batches(6)):
            step(x, y)
            if number == 2:
                network.topology.update(0.5)
        networks.append(network)
    plain, compiled = (everything(n) for n in networks)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)


def one_bad_gradient(network, number, bad):
    """Make the gradient of the classifier infinite in one step."""
    bias = network.model.classifier.bias
    steps = iter(range(1000))
    bias.register_hook(lambda g: g * torch.inf if next(steps) == bad else g)


def test_a_bad_step_is_left_out():
    found = []
    for skipped in (False, True):
        torch.manual_seed(0)
        network = network_for()
        step = TrainingStep(network, cross_entropy, guard := FiniteGuard(CPU, allowed=1))
        network.model.train()
        for number, (x, y) in enumerate(batches(5)):
            if number == 2 and not skipped:
                continue
            step(x * torch.nan if number == 2 else x, y)
        found.append(network)
        assert guard.skipped() == skipped
        assert guard.fatal_step() is None
    counters = {k for k in everything(found[0]) if k.endswith("num_batches_tracked")}
    one, other = (everything(n) for n in found)
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

    monkeypatch.setattr("sparse_engine.training.trainer.build_network", build_and_break)
    main([*FLAGS, "--method", "static", "--epochs", "3", *flags])


def test_a_run_fails_at_a_bad_gradient(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RunFailure,
        match="a gradient is not finite at step 7; first layer in backward with one: classifier; "
        "any checkpoint is from before",
    ):
        run_with_bad_gradients(monkeypatch, range(7, 99), "--out", "run")


def test_a_run_may_leave_out_some_steps(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
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


def test_gradients_in_fp16_are_those_of_fp32():
    weights = []
    for dtype in ("fp32", "fp16"):
        torch.manual_seed(0)
        network = network_for(model="mlp")
        step = TrainingStep(network, cross_entropy, FiniteGuard(CPU, dtype == "fp16"), dtype)
        for x, y in batches(3):
            step(x, y)
        weights.append(network.model.classifier.weight.detach())
    assert torch.allclose(*weights, rtol=0, atol=5e-3)
    assert not torch.equal(*weights)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_graph_trains_what_plain_steps_do(dtype, tmp_path, monkeypatch):
    """Through topology updates and phases, fused."""
    monkeypatch.chdir(tmp_path)
    flags = ["--method", "edst", "--members", "2", "--epochs", "8", "--model", "wrn10-2"]
    flags += ["--block", "16x16", "--batch-size", "128", "--device", "cuda", "--dtype", dtype]
    found = {}
    for graph in ("off", "on"):
        main([*flags, "--cuda-graph", graph, "--out", graph])
        with Path(graph, "metrics.csv").open(newline="") as file:
            found[graph] = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert found["on"][0] == pytest.approx(found["off"][0], rel=1e-2)
    assert found["on"][-1] == pytest.approx(found["off"][-1], abs=0.3)
    assert found["on"][-1] < 0.7 * found["on"][0]


@pytest.mark.gpu
def test_a_graph_follows_rates_and_swaps():
    """As test_replays_equal_steps does on tapes, with a real graph."""
    networks = []
    for graph in (False, True):
        torch.manual_seed(0)
        config = resolve(Config(method="set", model="wrn10-1", block="16x16", sparsity=0.5))
        device = torch.device("cuda")
        network = build_network(config, TABLE["digits"], device)
        step = TrainingStep(network, cross_entropy, FiniteGuard(device), cuda_graph=graph)
        network.model.train()
        for number, (x, y) in enumerate(batches(12)):
            network.rate.fill_(0.01 / (1 + number))
            step(x.to(device), y.to(device))
            if number % 4 == 3:
                network.topology.update(0.5)
        assert graph == (step._graph is not None and step._graph.is_recorded)
        networks.append(everything(network))
    for name, value in networks[0].items():
        torch.testing.assert_close(networks[1][name], value, rtol=1e-2, atol=1e-3)
