"""FLOPs by hand, against PyTorch's own counter, and against the published ERK fractions."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparse_engine import sparsify
from sparse_engine.layers.candidates import dense_layers
from sparse_engine.layers.surgery import model_densities
from sparse_engine.models.build import build_model
from sparse_engine.models.workload import dense_flops, forward_flops, step_flops
from sparse_engine.sparsity.distribution import Sparsity


class Small(nn.Module):
    """Convolutions with stride, groups and dilation, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, (3, 1), groups=4, bias=False)
        self.twice = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.classifier = nn.Linear(8, 10)
        self.unused = nn.Linear(5, 5)

    def forward(self, x):
        x = self.grouped(self.norm(self.first(x)))
        return self.classifier(self.twice(self.twice(x)).mean((2, 3)))


def test_dense_flops_by_hand():
    assert dense_flops(Small(), (3, 12, 16)) == {
        "first": 2 * 8 * 3 * 9 * (6 * 8),
        "grouped": 2 * 8 * 2 * 3 * (4 * 8),
        "twice": 2 * (2 * 8 * 8 * 9 * (4 * 8)),
        "classifier": 2 * 8 * 10,
        "unused": 0,
    }


def test_a_linear_layer_counts_every_token():
    model = nn.Sequential(nn.Flatten(2), nn.Linear(6, 4))
    assert dense_flops(model, (5, 2, 3)) == {"1": 2 * 6 * 4 * 5}


@pytest.mark.parametrize("name", ["wrn16-2", "resnet20", "mlp"])
def test_dense_flops_equal_pytorchs_counter(name):
    with torch.device("meta"):
        model = build_model(name, classes=7, channels=3, height=16, width=16).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, 16, 16))
    assert sum(dense_flops(model, (3, 16, 16)).values()) == counter.get_total_flops()


def test_a_sparse_model_counts_its_active_share_and_is_left_alone():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 10)).double()
    dense = dense_flops(model, (4, 6, 6))
    sparsify(model, 0.75, "uniform", (4, 4))
    model.train()
    assert dense_flops(model, (4, 6, 6)) == dense
    densities = model_densities(model)
    assert set(densities) == {"0", "2"}
    expected = sum(dense[n] * model.get_submodule(n).density for n in dense)
    assert forward_flops(dense, densities) == pytest.approx(expected)
    assert forward_flops(dense, {}) == sum(dense.values())
    assert model.training
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "size", "sparsity", "fraction"),
    [
        ("wrn28-10", 10, 32, 0.8, 0.340),
        ("wrn28-10", 10, 32, 0.9, 0.169),
        ("torchvision/resnet50", 1000, 224, 0.8, 0.414),
        ("torchvision/resnet50", 1000, 224, 0.9, 0.242),
    ],
)
def test_erk_fractions_of_the_papers(name, classes, size, sparsity, fraction):
    with torch.device("meta"):
        model = build_model(name, classes=classes, channels=3, height=size, width=size)
    dense = dense_flops(model, (3, size, size))
    shapes = {n: tuple(m.weight.shape) for n, m in dense_layers(model)}
    plans = Sparsity(sparsity, "erk", (1, 1)).plans(shapes)
    sparse = forward_flops(dense, {plan.name: plan.density for plan in plans})
    assert sparse / sum(dense.values()) == pytest.approx(fraction, abs=5e-4)


def test_step_flops_by_hand():
    assert step_flops(100.0, 100.0, None) == 300
    assert step_flops(20.0, 100.0, None) == 60
    assert step_flops(20.0, 100.0, 1) == (60 + 140) / 2
    assert step_flops(20.0, 100.0, 100) == pytest.approx((3 * 20 * 100 + 2 * 20 + 100) / 101)
    assert step_flops(20.0, 100.0, 10**9) == pytest.approx(60)
