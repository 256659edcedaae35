"""Which channels belong together: small networks by hand, and that nothing changes any model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from any_models import MODELS
from torch import nn

from sparse_engine import fuse, sparsify, to_rows
from sparse_engine.errors import InputError
from sparse_engine.models.build import build_model
from sparse_engine.sparsity.channel_permutation.groups import channel_groups
from sparse_engine.sparsity.channel_permutation.permutation import ChannelPermutation
from sparse_engine.sparsity.sparsify import dense_state_dict
from sparse_kernels.operators.reference import scatter_blocks

OURS = ("mlp", "vgg16", "wrn10-1", "resnet8")
TRACED = ("resnet", "resnext", "densenet", "mobilenet_v3", "efficientnet", "vgg", "regnet")


def groups_of(model):
    """Return each group as its channels and axes in words."""
    return {
        (g.channels, *sorted(f"{a.tensor}:{a.dimension}x{a.repeat}" for a in g.axes))
        for g in channel_groups(model)
    }


def group(channels, *axes):
    return (channels, *sorted(axis if "x" in axis else f"{axis}x1" for axis in axes))


def norm(name):
    return [f"{name}.{n}:0" for n in ("weight", "bias", "running_mean", "running_var")]


def shuffle(model, optimizer=None, seed=0):
    """Give every group of channels a random order; return it."""
    generator = torch.Generator().manual_seed(seed)
    groups = channel_groups(model)
    orders = [torch.randperm(g.channels, generator=generator) for g in groups]
    order = ChannelPermutation.of(groups, orders)
    order.apply_(model, optimizer)
    return order


def randomise(model, seed=0):
    """Give norms statistics and weights of their own."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name in ("weight", "bias", "running_mean", "running_var"):
                value = getattr(module, name).data
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model.eval()


class Net(nn.Module):
    """Modules by name, and a forward that a test writes."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def test_a_chain_ties_norm_and_reader_and_leaves_both_ends():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 5, 1)
    )
    assert groups_of(model) == {group(8, "0.weight:0", "0.bias:0", *norm("1"), "4.weight:1")}


def test_a_residual_ties_all_that_is_added():
    def forward(net, x):
        x = net.stem(x)
        return net.head((x + net.out(F.relu(net.inner(x)))).mean((2, 3)))

    model = Net(
        forward,
        stem=nn.Conv2d(3, 6, 1, bias=False),
        inner=nn.Conv2d(6, 4, 1, bias=False),
        out=nn.Conv2d(4, 6, 1, bias=False),
        head=nn.Linear(6, 2),
    )
    ends = ("stem.weight:0", "out.weight:0", "inner.weight:1", "head.weight:1")
    assert groups_of(model) == {group(6, *ends), group(4, "inner.weight:0", "out.weight:1")}


def test_flattened_images_have_several_entries_a_channel():
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(36, 7), nn.Linear(7, 2))
    assert groups_of(model) == {
        group(4, "0.weight:0", "0.bias:0", "2.weight:1x9"),
        group(7, "2.weight:0", "2.bias:0", "3.weight:1"),
    }


def test_a_depthwise_convolution_is_tied_and_one_with_groups_keeps_its_order():
    tied = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    axes = ("0.weight:0", "0.bias:0", "1.weight:0", "1.bias:0", "2.weight:1")
    assert groups_of(tied) == {group(4, *axes)}
    for out in (4, 8):
        fixed = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, out, 1, groups=2))
        assert groups_of(nn.Sequential(*fixed, nn.Conv2d(out, 2, 1))) == set()


def twice(net, x):
    return net.last(net.b(net.b(net.a(x))))


def other_width(net, x):
    return net.last(net.b(net.a(x)) * net.gate(x))


UNKNOWN = {
    "concatenation": lambda net, x: net.last(torch.cat([net.a(x), net.b(net.a(x))], 1)[:, :4]),
    "reshape": lambda net, x: net.last(net.b(net.a(x)).reshape(2, 4, 4, 4)),
    "a layer called twice": twice,
    "a weight read from outside": lambda net, x: net.last(net.a(x)) * net.a.weight.sum(),
    "channels that are broadcast": other_width,
    "pooling over tokens": lambda net, x: net.last(
        F.avg_pool2d(net.line(x), 1).permute(0, 1, 3, 2)
    ),
    "softmax over channels": lambda net, x: net.last(net.a(x).softmax(1)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_unknown_keeps_its_order(name):
    model = Net(
        UNKNOWN[name],
        a=nn.Conv2d(4, 4, 1),
        b=nn.Conv2d(4, 4, 1),
        gate=nn.Conv2d(4, 1, 1),
        line=nn.Linear(4, 4),
        head=nn.Linear(2, 2),
        last=nn.Conv2d(4, 4, 1),
    )
    x = torch.randn(2, 4, 4, 4)
    before = model(x)
    for own in groups_of(model):
        assert not {"last.weight:1x1", "a.weight:1x1"} & set(own)
    shuffle(model)
    torch.testing.assert_close(model(x), before)


def test_shared_weights_keep_their_order():
    a, b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    b.weight = a.weight
    assert groups_of(nn.Sequential(a, b, nn.Conv2d(4, 2, 1))) == set()
    assert groups_of(nn.Sequential(a, a, nn.Conv2d(4, 2, 1))) == set()


def test_only_what_training_and_evaluation_share_is_free():
    def forward(net, x):
        x = net.a(x)
        return (net.last(x), net.auxiliary(x.flip(1))) if net.training else net.last(x)

    parts = {"a": nn.Conv2d(3, 4, 1), "last": nn.Conv2d(4, 2, 1), "auxiliary": nn.Conv2d(4, 2, 1)}
    model = Net(forward, **parts).eval()
    assert groups_of(model) == set()
    assert not any(module.training for module in model.modules())


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
    check_unchanged(randomise(model).double(), torch.randn(3, 1, 8, 8).double())


@pytest.mark.parametrize("name", TRACED)
def test_models_of_others_compute_the_same_in_any_order(name):
    torch.manual_seed(0)
    model = randomise(MODELS[name]())
    check_unchanged(model.double(), torch.randn(2, 3, 32, 32).double())


def test_sparse_layers_in_rows_and_fused_compute_the_same_as_ordinary_ones():
    torch.manual_seed(0)
    model = randomise(build_model("wrn10-1", classes=3, channels=1, height=8, width=8))
    sparsify(model, 0.5, "uniform", (4, 4))
    expected = groups_of(model)
    fuse(to_rows(model))
    assert groups_of(model) == expected
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


def test_a_model_that_cannot_be_traced_is_said_to_be():
    model = Net(lambda net, x: net.a(x) if x.sum() > 0 else x, a=nn.Conv2d(3, 3, 1))
    with pytest.raises(
        InputError, match="a Net cannot be permuted in its channels: symbolically traced"
    ):
        channel_groups(model)
