"""Which channels belong together: small networks by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_engine.errors import InputError
from sparse_engine.sparsity.channel_permutation.groups import channel_groups
from sparse_engine.sparsity.channel_permutation.permutation import ChannelPermutation


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
    groups = channel_groups(model)
    ChannelPermutation.of(groups, [torch.arange(g.channels).flip(0) for g in groups]).apply_(model)
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


def test_a_model_that_cannot_be_traced_is_said_to_be():
    model = Net(lambda net, x: net.a(x) if x.sum() > 0 else x, a=nn.Conv2d(3, 3, 1))
    with pytest.raises(
        InputError, match="a Net cannot be permuted in its channels: symbolically traced"
    ):
        channel_groups(model)
