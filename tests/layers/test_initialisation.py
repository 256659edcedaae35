"""Weights drawn by active fan-in: their spread, what is left alone, and the variance of signals."""

import pytest
import torch
from torch import nn

from sparse_engine import SparseConv2d, SparseLinear, sparsify
from sparse_engine.layers.initialisation import active_fan_in, draw_by_fan_in
from sparse_kernels import BlockLayout


def test_fan_in_by_hand():
    # Two rows of blocks: the first has taps of input blocks 0 and 1, the second is empty.
    layout = BlockLayout((6, 7, 1, 2), (4, 4), torch.tensor([0, 2, 3, 8]), active=3)
    layer = SparseConv2d(7, 6, (1, 2), layout=layout)
    assert active_fan_in(layer).tolist() == [4 + 3 + 3] * 4 + [0, 0]


@pytest.mark.parametrize("taps", ["each", "row", "all"])
def test_each_channel_has_the_deviation_of_its_own_fan_in(taps):
    layer = SparseConv2d(200, 150, 3, density=0.3, block=(16, 16), taps=taps)
    draw_by_fan_in(layer)
    weight = layer.dense_weight().detach()
    fan_in = active_fan_in(layer)
    assert torch.equal((weight != 0).sum((1, 2, 3)).float(), fan_in)
    scaled = (weight.pow(2).sum((1, 2, 3)) / 2)[fan_in > 0]  # chi-squared / fan-in, mean 1
    rows = torch.stack([row.mean() for row in scaled.split(16)])
    assert len(fan_in.unique()) > 3
    assert (rows - 1).abs().max() < 0.15
    mean = weight.sum() / (weight != 0).sum()
    assert mean.abs() < 4 * weight.std() / (weight != 0).sum() ** 0.5


def test_padding_and_unused_slots_stay_zero():
    layout = BlockLayout((6, 7), (4, 4), torch.tensor([3, 4, 0]), active=2)
    layer = SparseLinear(7, 6, layout=layout)
    draw_by_fan_in(layer)
    assert not layer.values[1].any()
    assert not layer.values[0, 3].any()
    assert not layer.values[0, :, 2:].any()
    assert layer.values[0, :3, :2].all()
    assert layer.values[2].all()


def test_a_generator_decides_and_the_rest_is_left_alone():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    sparsify(model, 0.8, block=(8, 8), skip=["2"], init="random")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        draw_by_fan_in(model, torch.Generator().manual_seed(seed))
        found.append(model[0].values.detach().clone())
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in model.state_dict().items():
        assert value.equal(before[name]) == (name != "0.values")


def test_signals_keep_their_variance_through_many_layers():
    def deviation(fan_in: bool) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(
            *(m for _ in range(10) for m in (nn.Linear(256, 256, bias=False), nn.ReLU()))
        )
        for layer in model[::2]:
            nn.init.kaiming_normal_(layer.weight)
        sparsify(model, 0.75, "uniform", block=(8, 8), init="random")
        if fan_in:
            draw_by_fan_in(model)
        return model(torch.randn(64, 256)).pow(2).mean().sqrt().item()

    assert 0.4 < deviation(True) < 2.5
    assert deviation(False) < 0.01
