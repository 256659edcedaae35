"""Narrower networks: about as many FLOPs as asked for, the same images and classes."""

import pytest
import torch
from torch import nn

from bench.speed.networks import NETWORKS, TINY, Network
from bench.speed.slim import NotNarrowed, slim_channels, slim_network
from bench.speed.steps import Step
from bench.speed.variant import Case, Unavailable, Variant
from sparse_engine.models.workload import dense_flops

MLP = Network("mlp-64", (64,), 4, 4, lambda: nn.Sequential(*map(nn.Linear, (64, 64), (64, 10))))


@pytest.mark.parametrize(("name", "share"), [("resnet18", 0.1), ("vgg16", 0.3)])
def test_flops_are_about_those_asked_for(name, share):
    network = NETWORKS[name]
    with torch.device("meta"):
        model = network.build()
    slim = slim_network(model, network.image, share)
    flops = [sum(dense_flops(m, network.image).values()) for m in (slim, model)]
    assert flops[0] / flops[1] == pytest.approx(share, rel=0.12)
    assert slim(torch.empty(2, *network.image, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("network", [TINY, MLP], ids=lambda network: network.name)
def test_a_slim_step_trains_a_dense_network_beside_its_case(network):
    step = Step(Case(network, 0.8, "uniform", "16x16"), Variant("slim"), "cpu")
    sparse = Step(Case(network, 0.8, "uniform", "16x16"), Variant("masked"), "cpu")
    assert step.case.sparsity == 0.8
    assert step.flops == sparse.flops
    assert step.flops_ratio == pytest.approx(sparse.flops_ratio, abs=0.1)
    assert 0 < step.density < 0.5
    assert step.kernel_share() is None
    before = next(step.model.parameters()).clone()
    step.run()
    assert not torch.equal(before, next(step.model.parameters()))


def test_channels_are_whole_vectors_and_no_more_than_before():
    assert [slim_channels(100, scale) for scale in (0.01, 0.3, 0.5, 1.0)] == [8, 32, 48, 96]
    assert slim_channels(4, 1.0) == 4


def test_what_cannot_be_narrowed_is_said():
    grouped = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1, groups=2))
    with pytest.raises(NotNarrowed, match="have groups"):
        slim_network(grouped, (3, 4, 4), 0.5)
    with pytest.raises(Unavailable, match="cannot be made narrower alike"):
        Step(Case(NETWORKS["vit-layer"].on("cpu"), 0.8), Variant("slim"), "cpu")
