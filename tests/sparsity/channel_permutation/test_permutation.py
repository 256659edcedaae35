"""Networks compute and train the same with their channels in any order."""

import copy

import pytest
import torch
import torch.nn.functional as F
from any_models import MODELS
from norms import lively
from torch import nn

from sparse_engine import dense_state_dict, fuse, sparsify, to_rows
from sparse_engine.models.build import build_model
from sparse_engine.sparsity.channel_permutation.groups import channel_groups
from sparse_engine.sparsity.channel_permutation.permutation import ChannelPermutation
from sparse_kernels.operators.reference import scatter_blocks

OURS = ("mlp", "vgg16", "wrn10-1", "resnet8")
TRACED = ("resnet", "resnext", "densenet", "mobilenet_v3", "efficientnet", "vgg", "regnet")


def shuffle(model, optimizer=None, seed=0):
    """Give every group of channels a random order; return it."""
    generator = torch.Generator().manual_seed(seed)
    groups = channel_groups(model)
    orders = [torch.randperm(g.channels, generator=generator) for g in groups]
    order = ChannelPermutation.of(groups, orders)
    order.apply_(model, optimizer)
    return order


def check_unchanged(model, x, tolerance=1e-5):
    """Check outputs and gradients of the input, before and after random orders, in both modes."""
    twin = copy.deepcopy(model)
    order = shuffle(twin)
    assert order.moves
    for training in (False, True):
        results = []
        for net in (model.train(training), twin.train(training)):
            own = x.clone().requires_grad_()
            torch.manual_seed(0)
            y = net(own)
            y.square().sum().backward()
            results.append((y.detach(), own.grad))
        for first, second in zip(*results):
            scale = float(first.abs().max()) + 1e-6
            torch.testing.assert_close(second / scale, first / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", OURS)
def test_our_models_compute_the_same_in_any_order(name):
    torch.manual_seed(0)
    model = build_model(name, classes=3, channels=1, height=8, width=8)
    check_unchanged(lively(model).double(), torch.randn(3, 1, 8, 8).double())


@pytest.mark.parametrize("name", TRACED)
def test_models_of_others_compute_the_same_in_any_order(name):
    torch.manual_seed(0)
    model = lively(MODELS[name]())
    check_unchanged(model.double(), torch.randn(2, 3, 32, 32).double())


def test_sparse_layers_in_rows_and_fused_compute_the_same_as_ordinary_ones():
    torch.manual_seed(0)
    model = lively(build_model("wrn10-1", classes=3, channels=1, height=8, width=8)).eval()
    sparsify(model, 0.5, "uniform", (4, 4))
    expected = channel_groups(model)
    fuse(to_rows(model))
    assert channel_groups(model) == expected
    x = torch.randn(2, 1, 8, 8)
    before = model(x)
    order = shuffle(model)
    assert type(model.blocks[0].conv1) is nn.Conv2d
    assert type(model).__name__ == "FusedWideResNet"
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert order.moves


def trained(kind, sparse=False):
    """Return a network and its optimizer after two steps, and the step."""
    torch.manual_seed(0)
    model = build_model("resnet8", classes=3, channels=1, height=8, width=8).double()
    if sparse:
        sparsify(model, 0.5, "uniform", (2, 2), init="random")
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.01, **options)
    x, y = torch.randn(4, 1, 8, 8).double(), torch.tensor([0, 1, 2, 0])

    def train(net, own):
        for _ in range(2):
            own.zero_grad()
            F.cross_entropy(net(x), y).backward()
            own.step()
        return net(x)

    train(model, optimizer)
    return model, optimizer, train


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_training_goes_on_as_it_would_have(kind):
    model, optimizer, train = trained(kind)
    twin, state = copy.deepcopy((model, optimizer))
    order = shuffle(twin, state)
    torch.testing.assert_close(train(twin, state), train(model, optimizer))
    moved = order.state(model.state_dict())
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(value, moved[name])


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_the_momentum_of_sparse_layers_moves_along(kind):
    model, optimizer, _ = trained(kind, sparse=True)
    layer, name = model.blocks[0].conv1, "blocks.0.conv1.weight"
    index, sizes = layer.layout.tensors(), layer.layout.sizes()
    before = {k: v for k, v in optimizer.state[layer.values].items() if v.ndim}
    before = {k: scatter_blocks(v, index, sizes) for k, v in before.items()}
    expected = {k: v.clone() for k, v in dense_state_dict(model).items()}
    order = shuffle(model, optimizer)
    for key, value in model.state_dict().items():
        assert value.equal(order.state(expected)[key])
    after = optimizer.state[model.blocks[0].conv1.weight]
    assert before
    for key, value in before.items():
        assert after[key].equal(order.state({name: value})[name])
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in model.parameters()} == {id(p) for p in optimizer.state}
