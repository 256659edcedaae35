"""to_rows: the same numbers as before, with every activation and gradient in rows order."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision
from nodes import names
from norms import lively
from row_checks import assert_all_rows, assert_same, in_rows, pass_through, rows
from torch import nn

from sparse_engine import SparseConv2d, sparsify
from sparse_engine.layers.rows import (
    RowsAdaptiveAvgPool2d,
    RowsAvgPool2d,
    RowsBatchNorm2d,
    RowsConv2d,
    RowsMaxPool2d,
    orders,
    to_rows,
)
from sparse_engine.models.build import build_model
from sparse_kernels.memory_order import in_order
from sparse_kernels.operators import convolution

# With the smallest images that leave a single one of them more than a pixel for every norm.
NETWORKS = {"wrn16-2": 16, "resnet18": 16, "vgg16": 32}


def network(name: str, dtype=torch.float64, size: int = 16) -> nn.Module:
    """Return a sparse network whose norms have seen other data than they will see."""
    model = build_model(name, classes=10, channels=3, height=size, width=size).to(dtype)
    sparsify(model, 0.8, block=(16, 16))
    return lively(model)


@pytest.mark.parametrize(
    ("batch", "training", "size"),
    [
        *[(1, True, None), (2, True, None), (5, True, None), (2, False, None)],
        # Such images shrink to 1x1 or 2x2, from where the gradient must find its order again.
        (3, True, 8),
    ],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_numbers_and_rows(name, batch, training, size):
    plain = network(name, size=size or 16).train(training)
    model, size = to_rows(copy.deepcopy(plain)), size or NETWORKS[name]
    x = torch.randn(batch, 3, size, size, dtype=torch.float64)
    assert_same(pass_through(model, x), pass_through(plain, x), 1e-10)
    assert_all_rows(model, in_order(x, "rows"))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_single_precision(name):
    plain = network(name, torch.float32)
    model = to_rows(copy.deepcopy(plain))
    x = torch.randn(5, 3, NETWORKS[name], NETWORKS[name])
    found, expected = pass_through(model, x), pass_through(plain, x)
    # A ReLU or max-pool on the other side of its kink shows in all gradients before it.
    assert_same(found, expected, 1e-2)
    exact = [key for key in expected if key == "y" or key.startswith("buffer")]
    assert_same({k: found[k] for k in exact}, {k: expected[k] for k in exact}, 1e-5)


def test_one_channel_and_one_image_fit_every_order():
    model = nn.Sequential(SparseConv2d(1, 16, 3, padding=1, block=(16, 16)), nn.BatchNorm2d(16))
    assert_all_rows(to_rows(model), torch.randn(1, 1, 6, 6))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_layer_copies(name):
    table = orders(to_rows(network(name)), torch.randn(2, 3, 16, 16, dtype=torch.float64))
    lines = table.splitlines()[1:]
    for line in lines[1:]:
        assert set(line.split()[2:]) in ({"rows"}, {"-"}), table
    assert lines[0].split()[1:] == ["RowsConv2d", "rows", "rows", "rows", "-"]


def test_orders_shows_what_is_copied_and_leaves_the_model_alone():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.ZeroPad2d(1)
    )
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 5, 5)
    columns = [line.split()[1:] for line in orders(model, x).splitlines()[1:]]
    assert columns[1] == ["BatchNorm2d", *["contiguous"] * 4]
    columns = [line.split()[1:] for line in orders(to_rows(model), x).splitlines()[1:]]
    assert columns[1] == ["RowsBatchNorm2d", *["rows"] * 4]
    assert columns[3] == ["ZeroPad2d", "rows", "contiguous", "rows", "rows"]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        assert orders(model, x) == orders(model, x)
    bare = orders(to_rows(nn.Conv2d(3, 4, 1)).requires_grad_(False), x).splitlines()[1]
    assert bare.split() == ["-", "RowsConv2d", "rows", "rows", "-", "-"]


class Residual(nn.Module):
    """Element-wise operators between norms."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm2d(6), nn.Identity()
        self.dropout, self.maps, self.relu = nn.Dropout(0.3), nn.Dropout2d(0.3), nn.ReLU()

    def forward(self, x):
        x = self.last(torch.relu(self.maps(self.relu(self.dropout(self.norm(x)))) + x))
        return x.mean((2, 3))


def test_elementwise_operators_keep_rows():
    model = to_rows(Residual())
    assert_all_rows(model, rows(3, 6, 4, 5, dtype=torch.float32))
    table = orders(model, torch.randn(3, 6, 4, 5))
    for line in table.splitlines()[1:]:
        # Identity hands the expanded gradient of the mean to both sides of the addition.
        expected = {"contiguous"} if "Identity" in line else {"rows"}
        assert set(line.split()[4:5]) == expected, table


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.BatchNorm2d(6), RowsBatchNorm2d),
        (nn.BatchNorm2d(6, momentum=None), RowsBatchNorm2d),
        (nn.BatchNorm2d(6, track_running_stats=False), RowsBatchNorm2d),
        (nn.BatchNorm2d(6, eps=0.1, affine=False), RowsBatchNorm2d),
        (nn.MaxPool2d(2), RowsMaxPool2d),
        (nn.MaxPool2d(3, 2, 1), RowsMaxPool2d),
        (nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2), ceil_mode=True), RowsMaxPool2d),
        (nn.AvgPool2d(2), RowsAvgPool2d),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True), RowsAvgPool2d),
        (nn.AvgPool2d((2, 3), 1, (0, 1), count_include_pad=False), RowsAvgPool2d),
        (nn.AvgPool2d(2, divisor_override=3), RowsAvgPool2d),
        (nn.AdaptiveAvgPool2d(1), RowsAdaptiveAvgPool2d),
        (nn.AdaptiveAvgPool2d((1, 1)), RowsAdaptiveAvgPool2d),
        (nn.AdaptiveAvgPool2d((3, None)), RowsAdaptiveAvgPool2d),
        (nn.Conv2d(6, 4, 3, 2, 1), RowsConv2d),
        (nn.Conv2d(6, 6, (1, 3), groups=3, dilation=2, bias=False), RowsConv2d),
        (nn.Conv2d(6, 4, 3, padding="same", padding_mode="circular"), RowsConv2d),
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batch", [1, 4])
def test_modules_equal_those_they_replace(module, kind, training, batch):
    plain = copy.deepcopy(module).double().train(training)
    model = to_rows(copy.deepcopy(plain))
    assert type(model) is kind
    assert isinstance(model, type(plain))
    assert type(plain).__name__ in repr(model)
    for x in (torch.randn(batch, 6, 9, 7, dtype=torch.float64), rows(batch, 6, 9, 7)):
        model.zero_grad()
        plain.zero_grad()
        # PyTorch's own batch norm is wrong on a CPU for a single image with the strides of rows.
        assert_same(pass_through(model, x), pass_through(plain, x.contiguous()), 1e-12)
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(6),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d(3),
        nn.Conv2d(6, 4, 3),
    ],
    ids=str,
)
def test_gradients_of_any_order_become_rows(module):
    model = to_rows(nn.Sequential(copy.deepcopy(module)))
    x, number = rows(4, 6, 9, 7, dtype=torch.float32), torch.ones((), requires_grad=True)
    y = model(x)
    for order in ("contiguous", "channels_last", "rows", "expanded"):
        gradient = y.new_ones(1).expand_as(y)
        if order != "expanded":
            gradient = in_order(torch.randn(y.shape), order)
        inside = x * number
        y = model(inside)
        assert in_rows(y)
        assert in_rows(torch.autograd.grad(y, inside, gradient)[0]), order


def test_unusual_shapes_are_treated_as_before():
    pool, convolution = to_rows(nn.MaxPool2d(2)), to_rows(nn.Conv2d(3, 4, 3))
    image = torch.randn(3, 6, 6)
    assert torch.equal(pool(image), F.max_pool2d(image, 2))
    assert torch.equal(convolution(image), convolution(image[None])[0])
    assert to_rows(nn.AdaptiveAvgPool2d(1))(image).shape == (3, 1, 1)
    assert pool(torch.empty(0, 3, 6, 6)).shape == (0, 3, 3, 3)
    norm = to_rows(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="expected 4D input"):
        norm(image)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(torch.randn(1, 3, 1, 1))
    found, indices = to_rows(nn.MaxPool2d(2, return_indices=True))(image[None])
    assert torch.equal(F.max_unpool2d(found, indices, 2).amax((2, 3)), image[None].amax((2, 3)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_states_load_both_ways_and_models_survive_copies(copied):
    plain = network("wrn16-2")
    model = to_rows(network("wrn16-2"))
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict(), strict=True)
    network("wrn16-2").load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    twin = copied(model)
    assert_all_rows(copied(twin), x)
    assert_same(pass_through(twin, x), pass_through(plain, x), 1e-10)


def test_a_second_call_adds_only_what_is_new():
    model = to_rows(nn.Sequential(nn.Conv2d(3, 4, 1)))
    model.append(nn.BatchNorm2d(4))
    assert to_rows(model) is model
    assert [len(m._forward_hooks) for m in model.modules()] == [0, 1, 1]
    assert len(model._forward_pre_hooks) == 1
    assert type(model[1]) is RowsBatchNorm2d


def test_hooks_do_not_pile_up_on_images():
    model, x = to_rows(nn.Sequential(nn.Identity())), rows(2, 3, 4, 4).requires_grad_()
    for _ in range(3):
        assert model(x) is x
    assert not x._backward_hooks


def test_in_place_operators_and_second_derivatives():
    """A torchvision network changes the outputs of its norms in place."""
    plain = torchvision.models.resnet18(num_classes=4).double()
    model = to_rows(copy.deepcopy(plain))
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    assert_same(pass_through(model, x), pass_through(plain, x), 1e-10)
    small = to_rows(nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.AvgPool2d(2))).double()
    inputs = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(small, inputs)
    assert torch.autograd.gradgradcheck(small, inputs)


def test_what_changes_in_place_is_not_copied():
    model = to_rows(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True)).double())
    found = names(model(rows(4, 8, 3, 2).requires_grad_()))
    assert "ReluBackward0" in found
    assert "CopySlices" not in found


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiled(training):
    plain = network("wrn10-2").train(training)
    model = to_rows(copy.deepcopy(plain))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    y, expected = compiled(x), plain(x)
    for output in (y, expected):
        output.square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    states = [
        {**{n: p.grad for n, p in m.named_parameters()}, **dict(m.named_buffers())}
        for m in (model, plain)
    ]
    assert_same(*states, 1e-10)


def test_triton_kernels_are_given_rows(monkeypatch, request):
    """Not one input or gradient is copied on its way into a kernel."""
    plain = nn.Sequential(
        SparseConv2d(3, 16, 3, padding=1, bias=False, density=0.5, block=(16, 16)),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        SparseConv2d(16, 32, 3, 2, 1, bias=False, density=0.5, block=(16, 16)),
        nn.BatchNorm2d(32),
        nn.MaxPool2d(2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    model = to_rows(copy.deepcopy(plain))
    x = torch.randn(2, 3, 4, 4)
    expected = pass_through(plain, x)
    copied = []

    def noting(x, order):
        copied.append(in_order(x, order) is not x or order != "rows")
        return in_order(x, order)

    monkeypatch.setattr(convolution, "in_order", noting)
    request.getfixturevalue("triton_backend")
    assert_same(pass_through(model, x), expected, 1e-5)
    # Two layers: x, the gradient once for both passes, and again both images in each.
    assert copied == [False] * 10
