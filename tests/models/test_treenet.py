"""TreeNet: one trunk that all members share, and branches that know nothing of each other."""

import pytest
import torch

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.methods.losses import CROSS_ENTROPY, Given
from sparse_engine.methods.resolve import resolve
from sparse_engine.models.members import members_of
from sparse_engine.runs.model import dense_model

INFO = TABLE["digits"]


def treenet(**settings):
    torch.manual_seed(0)
    config = {"model": "wrn10-1", **settings}
    return dense_model(resolve(Config(method="treenet", **config)), INFO)


def batch():
    return torch.randn(6, 1, 8, 8), torch.arange(6)


def gradients(module):
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize("model", ["wrn10-1", "resnet8", "mlp"])
def test_branches_learn_independently_and_the_trunk_from_all(model):
    network, (x, y) = treenet(model=model), batch()
    network.eval()
    logits, labels = network.training_pair(x, y)
    assert logits.shape == (3, 6, 10)
    assert torch.equal(labels, torch.stack([y] * 3))
    logits[1].square().sum().backward()
    assert not any(g.any() for i in (0, 2) for g in gradients(network.branches[i]))
    assert all(g.any() for g in gradients(network.branches[1]))
    assert all(g.any() for g in gradients(network.trunk))


def test_the_trunks_gradient_is_the_sum_over_branches():
    network, (x, y) = treenet(), batch()
    network.double().eval()
    given = Given(x, label_smoothing=0.1)
    logits, labels = network.training_pair(x.double(), y)
    CROSS_ENTROPY(logits, labels, given).backward()
    found = gradients(network)
    network.zero_grad()
    for member in members_of(network):
        CROSS_ENTROPY(member(x.double()).float(), y, given).backward()
    for one, other in zip(found, gradients(network), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_members_are_trunk_and_branch():
    network, (x, _) = treenet(), batch()
    network.eval()
    found = torch.stack([member(x) for member in members_of(network)])
    torch.testing.assert_close(found, network.member_logits(x))
    assert not any(torch.equal(found[i], found[j]) for i, j in ((0, 1), (1, 2), (0, 2)))
    trunks = {id(member[0]) for member in members_of(network)}
    assert trunks == {id(network.trunk)}


def test_the_trunk_runs_once():
    network, (x, _) = treenet(), batch()
    calls = []
    network.trunk.register_forward_hook(lambda *arguments: calls.append(1))
    network(x)
    network.training_pair(x, torch.arange(6))
    assert len(calls) == 2


@pytest.mark.parametrize("shared", [1, 2, 3])
def test_the_number_of_shared_stages(shared):
    network = treenet(shared_stages=shared)
    plain = dense_model(resolve(Config(method="dense", model="wrn10-1")), INFO)
    parts = [plain.stem, plain.blocks[0], plain.blocks[1], plain.blocks[2]]
    count = sum(p.numel() for part in parts[: shared + 1] for p in part.parameters())
    assert sum(p.numel() for p in network.trunk.parameters()) == count
    whole = sum(p.numel() for p in plain.parameters())
    assert sum(p.numel() for p in network.parameters()) == count + 3 * (whole - count)
