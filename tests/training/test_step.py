"""The training step: replays equal plain steps; bad steps are left out; fp16 scales its loss."""

import csv
import functools
import itertools
from pathlib import Path

import pytest
import torch
from small_steps import CPU, batches, cross_entropy, everything, network_for
from tape import use_tapes
from torch._dynamo.exc import TorchDynamoException

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.methods.resolve import resolve
from sparse_engine.train import main
from sparse_engine.training.finite import FiniteGuard
from sparse_engine.training.network import build_network
from sparse_engine.training.step import TrainingStep
from sparse_engine.training.trainer import Trainer

FLAGS = ["--model", "wrn10-1", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]


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


@pytest.mark.parametrize(
    ("backend", "rule", "dtype"),
    [
        *itertools.product(["native"], ["set", "rigl", "static"], ["fp32", "bf16", "fp16"]),
        *(("masked", "set", "fp32"), ("masked", "rigl", "bf16"), ("masked", "static", "fp16")),
    ],
)
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


@pytest.mark.parametrize(
    "error", [TorchDynamoException("no graph of this\nmore"), ValueError("ours")]
)
def test_a_compiler_that_gives_up_is_told_in_a_line(error, monkeypatch):
    def compiled(*_):
        raise error

    monkeypatch.setattr(torch, "compile", lambda model: compiled)
    step = TrainingStep(network_for(model="mlp"), cross_entropy, FiniteGuard(CPU), compiled=True)
    kind = ValueError if isinstance(error, ValueError) else RunFailure
    with pytest.raises(kind, match=r"^(ours|torch.compile failed: .*; leave out --compile)$"):
        step(*next(batches(1)))


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
    losses = {}
    for graph in ("off", "on"):
        main([*flags, "--cuda-graph", graph, "--out", graph])
        with Path(graph, "metrics.csv").open(newline="") as file:
            losses[graph] = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert losses["on"][0] == pytest.approx(losses["off"][0], rel=1e-2)
    assert losses["on"][-1] == pytest.approx(losses["off"][-1], abs=0.3)
    assert losses["on"][-1] < 0.7 * losses["on"][0]


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
