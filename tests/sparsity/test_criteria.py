"""What decides between blocks: norms of weights and gradients."""

import json

import pytest
import torch
from torch import nn

from sparse_engine import DynamicSparsity, SparseConv2d, SparseLinear, sparsify
from sparse_engine.errors import InputError
from sparse_engine.sparsity.criteria import SCORES, Criteria
from sparse_engine.sparsity.topology import Topology, contributions
from sparse_engine.train import main
from sparse_kernels import BlockLayout
from sparse_kernels.operators.reference import block_norms

# Of 2x2 blocks: the largest L1 norm, the largest L2 norm, the largest magnitude.
PATTERNS = {
    "l1": [[4.0, 4.0], [4.0, 4.0]],
    "l2": [[7.0, 7.0], [0.0, 0.0]],
    "max": [[8.0, 0.0], [0.0, 0.0]],
}
RAGGED = (7, 5, 2, 3)
ORDERS = {"l1": 1, "l2": 2, "max": float("inf")}


def naive_norms(dense, block, norm):
    """Return a norm of each block of a weight [O, C, R, S], by slicing, in the order of ids."""
    bo, bc = block
    return torch.stack(
        [
            torch.linalg.vector_norm(dense[o : o + bo, c : c + bc, r, s], ORDERS[norm])
            for o in range(0, dense.shape[0], bo)
            for c in range(0, dense.shape[1], bc)
            for r in range(dense.shape[2])
            for s in range(dense.shape[3])
        ]
    )


@pytest.mark.parametrize("norm", SCORES)
def test_block_norms_equal_naive_ones(norm):
    dense = torch.randn(RAGGED)
    found = block_norms(dense, [*RAGGED, 4, 2], norm)
    torch.testing.assert_close(found, naive_norms(dense, (4, 2), norm))


def patterned_layer() -> SparseLinear:
    """Return a layer [2, 8] with the three patterns in its blocks, and one that is not active."""
    layout = BlockLayout((2, 8), (2, 2), torch.arange(3))
    layer = SparseLinear(8, 2, bias=False, layout=layout)
    with torch.no_grad():
        layer.values.copy_(torch.tensor(list(PATTERNS.values())))
    return layer


@pytest.mark.parametrize("norm", SCORES)
def test_the_score_decides_what_is_dropped(norm):
    model = nn.Sequential(patterned_layer())
    Topology(model, None, "set", criteria=Criteria(norm)).update(0.67)
    kept = model[0].values.flatten(1).any(1)
    assert kept.tolist() == [name == norm for name in SCORES]


@pytest.mark.parametrize("norm", SCORES)
def test_the_score_decides_what_grows(norm):
    layer = SparseLinear(8, 2, bias=False, layout=BlockLayout((2, 8), (2, 2), torch.tensor([3])))
    topology = Topology(nn.Sequential(layer), None, "rigl", criteria=Criteria(norm))
    topology.arm()
    weight = torch.cat([torch.tensor(p).T for p in PATTERNS.values()] + [torch.zeros(2, 2)], 1)
    # The gradient of sum(weight * y) for the input of one row a column is the pattern itself.
    (layer(torch.eye(8)) * weight.T).sum().backward()
    topology.update(1.0)
    assert layer.layout.block_ids.tolist() == [list(SCORES).index(norm)]


@pytest.mark.parametrize("norm", SCORES)
@pytest.mark.parametrize("taps", ["each", "all"])
def test_rigl_by_any_norm_equals_a_naive_update(norm, taps):
    torch.manual_seed(0)
    layer = SparseConv2d(5, 7, (2, 3), density=0.5, block=(2, 2), taps=taps).double()
    topology = Topology(nn.Sequential(layer), None, "rigl", criteria=Criteria(norm))
    weight, group = layer.dense_weight().detach().requires_grad_(), layer.layout.group
    x = torch.randn(3, 5, 6, 6, dtype=torch.float64)
    topology.arm()
    layer(x).square().sum().backward()
    torch.nn.functional.conv2d(x, weight, layer.bias).square().sum().backward()

    def group_norms(dense):
        norms = naive_norms(dense, (2, 2), norm).view(-1, group)
        return torch.linalg.vector_norm(norms, ORDERS[norm], dim=1).tolist()

    active = layer.layout.group_ids.tolist()
    count = int(0.4 * len(active) + 0.5)
    drop, grow = group_norms(weight.detach()), group_norms(weight.grad)
    kept = set(sorted(active, key=lambda b: -drop[b])[: len(active) - count])
    best = sorted((b for b in range(len(grow)) if b not in kept), key=lambda b: -grow[b])[:count]
    topology.update(0.4)
    assert set(layer.layout.group_ids.tolist()) == kept | set(best)


@pytest.mark.parametrize("norm", SCORES)
def test_contributions_of_equal_gradients_are_equal_whatever_the_block(norm):
    layers = {
        name: SparseLinear(16, 16, layout=BlockLayout((16, 16), (size, size), torch.arange(3)))
        for name, size in (("wide", 8), ("narrow", 2))
    }
    gradient = torch.full((16, 16, 1, 1), 0.25)
    scores = {n: block_norms(gradient, m.layout.sizes(), norm) for n, m in layers.items()}
    found = contributions(layers, scores, norm)
    assert found == pytest.approx({"wide": 0.25, "narrow": 0.25})


def test_a_new_topology_of_changed_layers_keeps_its_criteria():
    model = nn.Sequential(patterned_layer())
    topology = Topology(model, None, "rigl", 7, criteria=Criteria("max"))
    renewed = topology.of(model, None)
    assert (renewed.rule, renewed.seed, renewed.criteria) == ("rigl", 7, Criteria("max"))


def refused(message, **options):
    model = nn.Sequential(nn.Linear(16, 16))
    sparsify(model, 0.5, block=(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(InputError, match=message):
        DynamicSparsity(model, optimizer, **options)


def test_an_own_loop_refuses_unknown_scores_and_scores_without_updates():
    refused("unknown score 'l3'; use l1, l2, max", score="l3")
    refused(
        "score 'l2' is of topology updates, and topology 'static' has none",
        rule="static",
        score="l2",
    )


def test_a_command_refuses_a_score_without_updates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="score 'max' is of topology updates"):
        main(["--method", "static", "--score", "max"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["set", "rigl", "snfs", "granet"])
def test_a_command_trains_by_a_score(method, tmp_path, capsys):
    out = str(tmp_path / "out")
    flags = ["--model", "mlp", "--block", "8x8", "--batch-size", "512", "--epochs", "4"]
    main([*flags, "--method", method, "--score", "l2", "--device", "cpu", "--out", out])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["method"] == method
    assert json.loads((tmp_path / "out" / "config.json").read_text())["score"] == "l2"
