"""SparseConv2d and SparseLinear against nn.Conv2d and nn.Linear."""

import copy

import pytest
import torch
from sparse_layers import assert_whole_groups, call_dense, each_layer, input_of
from torch import nn

from sparse_engine import SparseConv2d, SparseLinear, sparsify
from sparse_engine.errors import InputError

CONVOLUTIONS = {
    "plain": (32, 48, 3),
    "tuples": (20, 33, (3, 2), (2, 1), (1, 0), (1, 2)),
    "same": (16, 16, (2, 3), 1, "same", (1, 2)),
    "valid": (16, 16, 3, 2, "valid"),
    "no bias": (16, 32, 3, 1, 1, 1, 1, False),
    **{
        f"{mode}, {padding}": (16, 20, (3, 4), 1, padding, 1, 1, True, mode)
        for mode in ("zeros", "reflect", "replicate", "circular")
        for padding in ((1, 2), "same", "valid")
    },
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("shape", [(3, 9, 8), (9, 8)], ids=["batch", "one image"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_equals_its_dense_form(name, shape):
    arguments = CONVOLUTIONS[name]
    sparse = SparseConv2d(*arguments, density=0.4, block=(16, 16)).double()
    dense = sparse.to_dense()
    assert isinstance(dense, nn.Conv2d)
    x = torch.randn(*shape[:-2], arguments[0], *shape[-2:], dtype=torch.float64)
    torch.testing.assert_close(sparse(x), dense(x), rtol=1e-12, atol=1e-12)
    reference = nn.Conv2d(*arguments)
    for attribute in ("stride", "padding", "dilation", "groups", "padding_mode", "kernel_size"):
        assert getattr(dense, attribute) == getattr(reference, attribute)
        assert getattr(sparse, attribute) == getattr(reference, attribute)
    assert dense.weight.shape == reference.weight.shape == sparse.dense_weight().shape
    assert (dense.bias is None) == (reference.bias is None)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_its_dense_form(bias):
    sparse = SparseLinear(33, 50, bias, dtype=torch.float64, density=0.5, block=(16, 16))
    dense = sparse.to_dense()
    x = torch.randn(2, 3, 33, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), dense(x), rtol=1e-12, atol=1e-12)
    assert (dense.in_features, dense.out_features) == (33, 50)


@each_layer
def test_full_density_keeps_a_dense_layer_exactly(make):
    dense = make().double().to_dense()
    nn.init.normal_(dense.weight)
    sparse_class = type(make())
    sparse = sparse_class.from_dense(dense.eval(), density=1, block=(16, 16))
    again = sparse.to_dense()
    assert not sparse.training
    assert not again.training
    for ours, theirs in zip(again.parameters(), dense.parameters()):
        assert ours.equal(theirs)
        assert ours.dtype == torch.float64
        assert ours.data_ptr() != theirs.data_ptr()


@each_layer
def test_from_dense_keeps_the_strongest_blocks(make):
    layer = make()
    dense = layer.to_dense()
    nn.init.normal_(dense.weight)
    dense.weight.requires_grad_(False)
    sparse = type(layer).from_dense(dense, density=0.3, block=(16, 16))
    mask = sparse.layout.mask()
    whole = type(layer).from_dense(dense, density=1, block=(16, 16))
    norms = whole.values.abs().sum((1, 2)).view(mask.shape)
    kinds = sparse.layout.kinds.of_groups(torch.arange(mask.numel())).view(mask.shape)
    for kind in kinds.unique():
        kept, others = norms[mask & (kinds == kind)], norms[~mask & (kinds == kind)]
        assert not len(kept) or kept.min() > others.max()
    assert sparse.density == pytest.approx(0.3, abs=256 / 960)
    stored = sparse.dense_weight()
    assert stored[stored != 0].equal(dense.weight[stored != 0])
    assert not sparse.values.requires_grad
    assert not sparse.to_dense().weight.requires_grad


@each_layer
def test_dense_weight_is_differentiable_and_read_as_weight(make):
    layer = make()
    x = input_of(layer)
    layer(x).sum().backward()
    wanted = layer.values.grad.clone()
    layer.values.grad = None
    call_dense(layer, x).sum().backward()
    torch.testing.assert_close(layer.values.grad, wanted)


@each_layer
def test_weight_cannot_be_assigned(make):
    layer = make()
    with pytest.raises(AttributeError, match=r"weight is made from its blocks .* change \.values"):
        layer.weight = nn.Parameter(torch.ones(24, 40))


@each_layer
def test_density_block_and_mask(make):
    layer = make()
    mask = layer.block_mask()
    grid = (2, 3, 3, 3) if isinstance(layer, SparseConv2d) else (2, 3)
    assert mask.shape == grid
    assert mask.sum() == layer.layout.active
    assert layer.density == (layer.weight != 0).sum() / layer.weight.numel()
    assert layer.block == (16, 16)
    assert f"density={layer.density:.4g}, block=(16, 16)" in repr(layer)


@pytest.mark.parametrize(
    ("block", "wanted"),
    [((32, 32), (16, 16)), ((1, 1), (1, 1)), ("auto", (16, 16)), ((8, 8), (8, 8))],
)
def test_block_of_a_first_layer(block, wanted):
    layer = SparseConv2d(3, 16, 3, density=0.5, block=block)
    assert layer.block == wanted
    assert layer(torch.randn(2, 3, 5, 5)).shape == (2, 16, 3, 3)


def test_automatic_blocks_divide_the_channels():
    assert SparseConv2d(160, 640, 3, block="auto").block == (128, 32)
    assert SparseLinear(64, 100, block="auto").block == (32, 64)


def test_unstructured():
    layer = SparseConv2d(5, 7, 3, density=0.2, block=(1, 1))
    assert layer.values.shape == (63, 1, 1)
    assert (layer.dense_weight() != 0).sum() == 63


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseConv2d(32, 32, 3, groups=2), "supports groups=1 only, found groups=2"),
        (lambda: SparseConv2d(32, 32, 3, padding_mode="mirror"), "padding_mode='mirror'"),
        (lambda: SparseConv2d(32, 32, 3, padding="full"), "Invalid padding string 'full'"),
        (lambda: SparseConv2d(32, 32, 3, 2, "same"), "'same' is not supported for strided"),
        (lambda: SparseConv2d(32, 32, (3, 3, 3)), r"one or two integers, found \(3, 3, 3\)"),
        (lambda: SparseLinear(32, 32, density=0), "above 0 and at most 1, found 0"),
        (lambda: SparseLinear(32, 32, density=1.1), "above 0 and at most 1, found 1.1"),
        (lambda: SparseLinear(32, 32, density=float("nan")), "at most 1, found nan"),
        (lambda: SparseLinear(32, 32, block=(0, 4)), "two positive integers"),
        (lambda: SparseLinear(0, 32), "all positive"),
    ],
)
def test_arguments_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def together(taps, density=0.4, block=(4, 4), kernel=(3, 2)) -> SparseConv2d:
    return SparseConv2d(10, 13, kernel, density=density, block=block, taps=taps).double()


@pytest.mark.parametrize("block", [(4, 4), (5, 3), (1, 1)])
@pytest.mark.parametrize(
    ("taps", "kernel"),
    [("all", (3, 2)), ("row", (3, 2)), ("row", (3, 1)), ("row", (1, 3)), ("row", (5, 3))],
)
def test_forward_and_backward_of_taps_together_equal_the_masked_dense_layer(block, taps, kernel):
    layer = together(taps, block=block, kernel=kernel)
    dense = layer.to_dense()
    x = torch.randn(2, 10, 6, 6, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    y, expected = layer(x), dense(twin)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(x.grad, twin.grad)
    bo, bc = layer.block
    mask = layer.block_mask().repeat_interleave(bo, 0).repeat_interleave(bc, 1)[:13, :10]
    found = copy.deepcopy(layer)
    with torch.no_grad():
        found.values.copy_(layer.values.grad)
    torch.testing.assert_close(found.dense_weight(), dense.weight.grad * mask)
    assert_whole_groups(layer)


@pytest.mark.parametrize(("taps", "size"), [("row", 2), ("all", 6)])
def test_density_is_of_whole_groups(taps, size):
    layer = together(taps, density=0.5)
    assert layer.layout.total == 4 * 3 * 6
    assert layer.taps == taps
    assert layer.layout.active % size == 0
    assert layer.density == pytest.approx(0.5, abs=16 / 130 * size / 6)
    assert together(taps, density=0.001).layout.active == size
    assert f"block=(4, 4), taps='{taps}'" in repr(layer)


@pytest.mark.parametrize("kernel", [1, (1, 1)])
def test_one_tap_is_the_same_as_each(kernel):
    layers = [
        SparseConv2d(9, 9, kernel, density=0.5, block=(2, 2), taps=t, generator=torch.Generator())
        for t in ("each", "row", "all")
    ]
    for other in layers[1:]:
        assert layers[0].layout.block_ids.equal(other.layout.block_ids)
        assert layers[0].values.equal(other.values)
        assert repr(layers[0]) == repr(other)


@pytest.mark.parametrize("taps", ["row", "all"])
def test_from_dense_keeps_the_strongest_groups(taps):
    conv = nn.Conv2d(8, 8, 3)
    layer = SparseConv2d.from_dense(conv, density=0.5, block=(4, 4), taps=taps)
    norms = conv.weight.detach().abs().view(2, 4, 2, 4, 3, 3).sum((1, 3, 5))
    norms = (norms if taps == "row" else norms.sum(2)).flatten()
    assert set(layer.layout.group_ids.tolist()) == set(norms.topk(len(norms) // 2).indices.tolist())
    assert_whole_groups(layer)


def test_unknown_taps():
    with pytest.raises(InputError, match="unknown taps 'al'; did you mean 'all'"):
        sparsify(nn.Sequential(nn.Linear(8, 8)), taps="al")
    with pytest.raises(ValueError, match="taps must be 'each', 'row' or 'all'"):
        SparseConv2d(3, 3, 3, taps="none")
