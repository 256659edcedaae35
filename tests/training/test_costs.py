"""What a run would cost: --dry-run against the papers, and against networks that are built."""

import json

import pytest
import torch

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.surgery import model_densities
from sparse_engine.methods.registry import METHODS
from sparse_engine.methods.resolve import resolve
from sparse_engine.models.workload import dense_flops, forward_flops
from sparse_engine.train import main
from sparse_engine.training.network import build_network

SETTINGS = [
    ("digits", "mlp", "8x8"),
    ("digits", "wrn16-2", "16x8"),
    ("cifar10", "wrn16-2", "32x32"),
    ("cifar100", "resnet20", "auto"),
    ("mnist", "resnet20", "1x1"),
]


@pytest.fixture
def dry_run(tmp_path, monkeypatch, capsys):
    """Return the JSON object, and the lines above it, of a dry run that wrote nothing."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        main([*arguments, "--device", "cpu", "--dry-run"])
        assert not list(tmp_path.iterdir())
        lines = capsys.readouterr().out.splitlines()
        return json.loads(lines[-1]), lines[:-1]

    return call


@pytest.mark.parametrize(
    ("method", "dataset"),
    [*((m, "cifar10") for m in METHODS), *(("edst", d) for d in TABLE if d != "cifar10")],
)
def test_no_data_is_needed(method, dataset, dry_run):
    own = ["--dropout", "0.1", "--model", "resnet20"] if method == "mc-dropout" else []
    result, _ = dry_run("--dataset", dataset, "--method", method, *own)
    assert (result["method"], result["dataset"]) == (method, dataset)
    assert result["bytes"] >= 4 * result["parameters"] > 0
    assert result["train_flops"] > 0
    assert result["test_flops_ratio"] == pytest.approx(1) if method == "dense" else True
    measured = ("accuracy", "nll", "ece", "member_accuracy", "train_seconds", "peak_memory_bytes")
    assert [result[name] for name in measured] == [None] * 6


@pytest.mark.parametrize(
    ("method", "members", "sparsity", "epochs", "train_ratio", "test_ratio"),
    [
        ("edst", 3, 0.8, 450, 0.61, 1.01),
        ("edst", 7, 0.9, 850, 0.57, 1.17),
        ("dst-ensemble", 3, 0.8, 750, 1.01, 1.01),
    ],
)
def test_cifar_ratios_of_the_paper(
    method, members, sparsity, epochs, train_ratio, test_ratio, dry_run
):
    flags = ["--dataset", "cifar10", "--model", "wrn28-10", "--block", "1x1", "--method", method]
    result, _ = dry_run(*flags, "--members", str(members), "--sparsity", str(sparsity))
    assert result["epochs"] == epochs
    assert result["train_flops_ratio"] == pytest.approx(train_ratio, abs=0.02)
    assert result["test_flops_ratio"] == pytest.approx(test_ratio, abs=0.02)


@pytest.mark.parametrize(
    ("method", "members", "epochs", "ratio"),
    [("edst", 2, 170, 0.48), ("edst", 4, 310, 0.87), ("dst-ensemble", 2, 400, 1.12)],
)
def test_imagenet_ratios_of_the_paper(method, members, epochs, ratio, dry_run):
    flags = ["--dataset", "imagenet", "--model", "torchvision/resnet50", "--block", "1x1"]
    result, _ = dry_run(*flags, "--method", method, "--members", str(members), "--sparsity", "0.8")
    assert result["epochs"] == epochs
    assert result["train_flops_ratio"] == pytest.approx(ratio, abs=0.02)


def test_a_dense_run_costs_what_it_is_compared_with(dry_run):
    result, _ = dry_run("--dataset", "cifar10", "--method", "dense")
    assert (result["epochs"], result["train_flops_ratio"], result["test_flops_ratio"]) == (
        250,
        1,
        1,
    )
    # The paper gives 3.6e17 for 250 epochs of 50,000 images.
    assert result["train_flops"] == pytest.approx(3.6e17, rel=0.1)


@pytest.mark.parametrize("dataset", [name for name in TABLE if name != "imagenet"])
def test_three_tickets_cost_less_than_a_dense_run_of_the_same_defaults(dataset, dry_run):
    """FreeTickets: 1.8 times the epochs of a dense run, and fewer FLOPs."""
    dense, _ = dry_run("--dataset", dataset, "--method", "dense")
    edst, lines = dry_run("--dataset", dataset, "--method", "edst")
    assert (edst["members"], edst["epochs"]) == (3, 1.8 * dense["epochs"])
    assert dense["train_flops_ratio"] == 1
    assert edst["train_flops_ratio"] == pytest.approx(edst["train_flops"] / dense["train_flops"])
    assert 0.3 < edst["train_flops_ratio"] < 1
    said = f"training {edst['train_flops_ratio']:.2f} times the FLOPs of --method dense"
    assert any(f"{said} ({dense['epochs']} epochs), test" in line for line in lines)


def test_ratios_follow_epochs(dry_run):
    flags = ["--dataset", "cifar10", "--method", "static"]
    whole, _ = dry_run(*flags)
    half, _ = dry_run(*flags, "--epochs", "125")
    assert half["train_flops_ratio"] == pytest.approx(whole["train_flops_ratio"] / 2)
    assert half["test_flops_ratio"] == whole["test_flops_ratio"]
    other, _ = dry_run(*flags, "--dense-epochs", "500")
    assert other["train_flops_ratio"] == pytest.approx(whole["train_flops_ratio"] / 2)


def test_rigl_pays_for_dense_gradients_until_it_stops(dry_run):
    flags = ["--dataset", "cifar10", "--block", "1x1", "--update-interval", "9"]
    static, _ = dry_run("--method", "static", *flags[:4])
    rigl, _ = dry_run("--method", "rigl", *flags)
    forward = static["train_flops_ratio"]
    dynamic = (3 * 9 * forward + 2 * forward + 1) / 10 / 3
    expected = 0.75 * dynamic + 0.25 * forward
    assert rigl["train_flops_ratio"] == pytest.approx(expected, rel=1e-4)
    assert dry_run("--method", "set", *flags)[0]["train_flops_ratio"] == forward


@pytest.mark.parametrize("method", ["dense", "static", "dst-ensemble"])
@pytest.mark.parametrize(("dataset", "model", "block"), SETTINGS)
def test_parameters_bytes_and_flops_are_those_of_a_built_network(
    method, dataset, model, block, dry_run
):
    flags = ["--dataset", dataset, "--model", model, "--block", block, "--method", method]
    result, lines = dry_run(*flags)
    config = resolve(Config(method=method, dataset=dataset, model=model, block=block))
    info = TABLE[dataset]
    network = build_network(config, info, torch.device("cpu")).model
    parameters = list(network.parameters())
    assert result["parameters"] == config.members * sum(p.numel() for p in parameters)
    values = sum(p.numel() * p.element_size() for p in parameters)
    lists = sum(m.index_bytes for m in network.modules() if isinstance(m, SparseLayer))
    assert result["bytes"] == config.members * (values + lists)
    assert (lists > values) == (block == "1x1" and method != "dense")

    dense = dense_flops(network, (info.channels, info.height, info.width))
    densities = model_densities(network)
    share = forward_flops(dense, densities) / sum(dense.values())
    assert result["test_flops_ratio"] == pytest.approx(config.members * share)
    shown = {line.split()[0]: float(line.split()[3]) for line in lines[1 : len(dense) + 1]}
    assert shown == pytest.approx({name: densities.get(name, 1) for name in dense}, abs=6e-5)


def test_phases_are_listed(dry_run):
    _, lines = dry_run("--dataset", "cifar10", "--method", "edst")
    table = [line.rsplit(maxsplit=4) for line in lines[-4:]]
    assert [row[0] for row in table] == ["explore", "refine 1", "refine 2", "refine 3"]
    assert [row[2] for row in table] == ["150.0", "100.0", "100.0", "100.0"]
    assert [row[1] for row in table] == [str(390 * epochs) for epochs in (150, 100, 100, 100)]
    assert [row[4] for row in table] == ["-", "yes", "yes", "yes"]


def test_validation_images_are_not_trained_on(dry_run):
    flags = ["--method", "static", "--batch-size", "1"]
    whole, _ = dry_run(*flags)
    result, _ = dry_run(*flags, "--select", "validation", "--validation", "0.25")
    share = (1437 - round(0.25 * 1437)) / 1437
    assert result["train_flops"] == pytest.approx(share * whole["train_flops"])


def test_gradual_pruning_costs_its_mean_density(dry_run):
    flags = ("--dataset", "digits", "--block", "1x1", "--model", "wrn16-2", "--epochs", "200")
    flags = (*flags, "--dense-epochs", "200")
    pruned, _ = dry_run("--method", "granet", *flags)
    rigl, start = (dry_run("--method", "rigl", "--sparsity", s, *flags)[0] for s in ("0.8", "0.5"))
    final, first = rigl["test_flops_ratio"], start["test_flops_ratio"]
    assert pruned["test_flops_ratio"] == final
    # A cubic that ends at .45 of the run spends .45 / 4 of it above the final density, on average.
    assert pruned["train_flops_ratio"] == pytest.approx(
        final + 0.45 / 4 * (first - final), rel=0.05
    )


def test_momentum_growth_collects_gradients_in_some_steps(dry_run):
    flags = ("--dataset", "digits", "--model", "wrn16-2", "--epochs", "300")
    flags = (*flags, "--dense-epochs", "300")
    snfs, _ = dry_run("--method", "snfs", "--update-interval", "439", *flags)
    sparse = snfs["test_flops_ratio"]
    # Dense weight gradients in 44 of 440 steps, in three quarters of the run.
    expected = sparse + 0.75 * 0.1 * (1 - sparse) / 3
    assert snfs["train_flops_ratio"] == pytest.approx(expected, rel=1e-3)
