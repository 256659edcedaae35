"""A run's network: its parameters' weight decay, and methods whose network is no plain model."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.surgery import change_layouts, used_layouts
from sparse_engine.methods import registry, single
from sparse_engine.methods.method import Method
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs import model as architecture
from sparse_engine.runs.model import plain_model
from sparse_engine.train import main
from sparse_engine.training.fusing import runs_fused, runs_in_rows
from sparse_engine.training.network import build_network

CPU = torch.device("cpu")


def network_for(**settings):
    config = resolve(Config(**{"method": "rigl", "model": "wrn10-1", **settings}))
    return build_network(config, TABLE[config.dataset], CPU)


def decays(network):
    """Return the weight decay of every parameter by name."""
    groups = network.optimizer.param_groups
    by_id = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in network.model.named_parameters()}


def test_weight_decay_may_spare_norms():
    network = network_for(norm_decay="off")
    norms = {n for n, m in network.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    expected = {n: 0.0 if n.rpartition(".")[0] in norms else 5e-4 for n in decays(network)}
    assert set(expected.values()) == {0.0, 5e-4}
    assert decays(network) == expected
    network.load(network.model.state_dict())
    assert decays(network) == expected
    names = dict.fromkeys(n for n, _ in network.model.named_modules() if n.endswith("conv1"))
    network.replace_layers(change_layouts(network.model, names))
    changed = {n.removesuffix("weight").removesuffix("values"): d for n, d in expected.items()}
    found = {n.removesuffix("weight").removesuffix("values"): d for n, d in decays(network).items()}
    assert found == changed


@pytest.mark.parametrize(
    "settings", [{}, {"norm_decay": "on"}, {"model": "mlp", "norm_decay": "off"}]
)
def test_weight_decay_holds_for_everything_else(settings):
    assert set(decays(network_for(**settings)).values()) == {5e-4}


def test_imagenet_decays_no_norms():
    assert resolve(Config(dataset="imagenet")).norm_decay == "off"
    assert resolve(Config(dataset="cifar10")).norm_decay == "on"


class TwoHeads(nn.Module):
    """Two plain models that are trained side by side: the smallest network that is none."""

    def __init__(self, config, info):
        super().__init__()
        self.heads = nn.ModuleList(plain_model(config, info) for _ in range(2))

    def training_pair(self, x, y):
        return torch.stack([head(x) for head in self.heads]), y.expand(2, -1)

    def forward(self, x):
        return torch.stack([head(x).softmax(-1) for head in self.heads]).mean(0).log()


def test_a_method_may_have_a_network_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(architecture.BUILDERS, "two", TwoHeads)
    monkeypatch.setitem(registry.METHODS, "two", Method(single.phases, network="two"))
    flags = ["--method", "two", "--model", "mlp", "--block", "8x8", "--batch-size", "64"]
    flags += ["--epochs", "3", "--dense-epochs", "3", "--sparsity", "0.5", "--lr", "0.3"]
    main([*flags, "--out", "out"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["accuracy"] > 0.3
    # Both heads count, against one plain network.
    assert 0.95 < found["test_flops_ratio"] <= 1
    assert 0.95 < found["train_flops_ratio"] <= 1
    state = torch.load(Path("out/member_1.pt"), weights_only=True)["model"]
    assert {name.split(".")[1] for name in state} == {"0", "1"}


def test_settings_of_the_first_blocks_and_weights_reach_the_network():
    network = {"model": "wrn10-1", "block": "4x4", "distribution": "erk"}

    def built(batches=(), **settings):
        config = resolve(Config(**network, **settings))
        model = build_network(config, TABLE["digits"], CPU, batches=batches).model
        return {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}

    plain = built(method="rigl")
    drawn = built(method="rigl", weight_init="fan-in")
    images = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scored = built([(images, torch.arange(20) % 10)], method="rigl", start="snip")
    strips, whole = (built(method="rigl", taps=taps) for taps in ("row", "all"))
    assert all(m.layout.slots == m.layout.active for m in plain.values())
    assert all(m.layout.block_ids.equal(plain[n].layout.block_ids) for n, m in drawn.items())
    assert not any(m.values.equal(plain[n].values) for n, m in drawn.items())
    assert {n: m.density for n, m in scored.items()} != {n: m.density for n, m in plain.items()}
    assert {m.layout.group for m in strips.values()} == {3}
    assert {m.layout.group for m in whole.values()} == {9}
    assert any(m.layout.slots > m.layout.active for m in built(method="snfs").values())
    assert all(
        m.density > plain[n].density and m.final_active == plain[n].layout.active
        for n, m in built(method="granet").items()
    )


@pytest.mark.usefixtures("poisoned_kernels")
def test_a_fused_run_equals_a_plain_one_and_stays_fused():
    """Also where layers are replaced, as pruning does."""
    weights = []
    for fuse in ("off", "on"):
        network = network_for(fuse=fuse, block="16x16", sparsity=0.5, method="set")
        images = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        network.replace_layers(change_layouts(network.model, used_layouts(network.model)))
        for _ in range(2):
            network.optimizer.zero_grad()
            network.model(images).square().mean().backward()
            network.optimizer.step()
        assert ("Fused" in type(network.model.blocks[0]).__name__) == (fuse == "on")
        weights.append(network.model.stem.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


def test_auto_fuses_on_a_gpu_where_a_layer_has_a_kernel_and_on_a_cpu(monkeypatch):
    monkeypatch.setattr("sparse_kernels.dispatch.backend.gpu_facts", lambda _: (90, 132))
    monkeypatch.delenv("SPARSE_ENGINE_BACKEND", raising=False)
    gpu = torch.device("cuda")

    def fused(device=gpu, block="32x32", sparsity=0.9, **options) -> bool:
        network = network_for(block=block, sparsity=sparsity, method="set")
        arguments = Config(**options), network.model, device
        if device == gpu:
            assert runs_fused(*arguments) == runs_in_rows(*arguments)
        return runs_fused(*arguments)

    assert fused()
    assert fused(CPU)
    assert fused(CPU, backend="native")
    assert not fused(CPU, backend="masked")
    assert not fused(CPU, compile=True)
    assert not fused(CPU, fuse="off")
    model = network_for(block="32x32", sparsity=0.9, method="set").model
    assert not runs_in_rows(Config(), model, CPU)
    assert not fused(block="1x1")
    assert not fused(sparsity=0.2)  # every layer is above break-even
    assert fused(sparsity=0.2, backend="triton")
    assert not fused(backend="masked")
    assert not fused(fuse="off")
    assert fused(CPU, fuse="on")
    for device in (gpu, CPU):
        assert not runs_fused(Config(), torch.nn.Conv2d(3, 4, 1), device)
