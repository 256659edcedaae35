"""nn.Conv1d and the Conv1D of GPT-2 as sparse layers, against the dense ones."""

import copy
import sys
import types

import pytest
import torch
from torch import nn

from sparse_engine import DynamicSparsity, dense_state_dict, densify, sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.other_kinds import SparseConv1d, SparseTransposedLinear


class Conv1D(nn.Module):
    """As in transformers: a linear layer with a weight [C, O]."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


Conv1D.__module__ = "transformers.pytorch_utils"


@pytest.fixture(autouse=True)
def transformers(monkeypatch):
    for name in ("transformers", "transformers.pytorch_utils"):
        module = types.ModuleType(name)
        module.Conv1D = Conv1D
        monkeypatch.setitem(sys.modules, name, module)


CONVOLUTIONS = {
    "usual": {"padding": 1},
    "strided": {"stride": 2, "padding": 2, "dilation": 2},
    "same, even": {"padding": "same", "kernel_size": 4},
    "valid": {"padding": "valid", "bias": False},
    "reflect": {"padding": 2, "padding_mode": "reflect"},
    "same, circular": {"padding": "same", "padding_mode": "circular", "dilation": 2},
    "one tap": {"kernel_size": 1},
}


def agree(model, x):
    """Compare a sparse model with its dense form: output, and the gradient of everything."""
    dense = densify(copy.deepcopy(model))
    own, given = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, right = model(own), dense(given)
    gradient = torch.randn(right.shape, dtype=x.dtype)
    y.backward(gradient)
    right.backward(gradient)
    torch.testing.assert_close(y, right)
    torch.testing.assert_close(own.grad, given.grad)
    for layer, twin in zip(model, dense):
        if hasattr(layer, "values"):
            layout = layer.layout
            whole = layer.from_weight(twin.weight.grad)
            twin_values = type(layer).from_dense(twin, layout=layout)
            with torch.no_grad():
                twin_values.weight.copy_(layer.to_weight(whole))
            torch.testing.assert_close(layer.values.grad, twin_values.values.detach())
            if layer.bias is not None:
                torch.testing.assert_close(layer.bias.grad, twin.bias.grad)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_conv1d_is_a_convolution_of_height_one(case):
    torch.manual_seed(0)
    options = {"kernel_size": 3, "dtype": torch.float64, **CONVOLUTIONS[case]}
    model = nn.Sequential(nn.Conv1d(20, 33, **options), nn.Conv1d(33, 16, **options))
    sparsify(model, 0.5, "uniform", (16, 16))
    assert [type(layer) for layer in model] == [SparseConv1d] * 2
    agree(model, torch.randn(3, 20, 21, dtype=torch.float64))
    single = torch.randn(20, 21, dtype=torch.float64)
    torch.testing.assert_close(model(single), model(single[None])[0])
    assert model[0].kernel_size == (options["kernel_size"],)  # as code that asks for it expects
    assert model[0].weight.shape == (33, 20, options["kernel_size"])


def test_a_transposed_linear_layer_keeps_its_shape():
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(48, 20), nn.ReLU(), Conv1D(33, 48), Conv1D(33, 33)).double()
    dense = copy.deepcopy(model)
    rows = sparsify(model, 0.5, "uniform", (16, 16)).rows
    assert [row.kind for row in rows] == ["SparseTransposedLinear"] * 3
    assert rows[0].shape == (48, 20)
    agree(model, torch.randn(2, 5, 20, dtype=torch.float64))
    assert (model[0].nf, model[0].nx, model[0].weight.shape) == (48, 20, (20, 48))
    dense.load_state_dict(dense_state_dict(model))
    x = torch.randn(4, 20, dtype=torch.float64)
    torch.testing.assert_close(dense(x), model(x))
    again = nn.Sequential(Conv1D(48, 20), nn.ReLU(), Conv1D(33, 48), Conv1D(33, 33)).double()
    sparsify(again, 0.5, "uniform", (16, 16), init="random")
    again.load_state_dict(dense.state_dict())  # a dense state: the strongest blocks are the same
    torch.testing.assert_close(again(x), model(x))
    assert type(densify(model)[3]) is Conv1D


@pytest.mark.parametrize("kind", [SparseConv1d, SparseTransposedLinear])
def test_writes_gradients_and_scores_lie_where_the_weight_does(kind):
    torch.manual_seed(0)
    is_conv = kind is SparseConv1d
    model = nn.Sequential(nn.Conv1d(20, 33, 3) if is_conv else Conv1D(33, 20))
    weight = model[0].weight
    weight.grad = torch.randn_like(weight)
    scores = {"0": weight.detach().abs()}
    gradient = weight.grad.clone()
    sparsify(model, 0.5, block=(16, 16), init=scores)
    written = copy.deepcopy(model)[0]
    assert type(written) is kind
    mask = (written.weight.detach() != 0).float()
    assert 0.2 < mask.mean() < 0.8
    with torch.no_grad():
        written.weight.copy_(gradient)
    torch.testing.assert_close(written.weight.detach().as_subclass(torch.Tensor), gradient * mask)
    # What hangs on the weight has moved into the blocks, and moves back.
    torch.testing.assert_close(densify(model)[0].weight.grad, gradient * mask)


def test_rigl_grows_blocks_of_a_conv1d():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(32, 64, 3), nn.ReLU(), nn.Conv1d(64, 32, 3))
    sparsify(model, 0.7, "uniform", (8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dynamic = DynamicSparsity(model, optimizer, "rigl", 2, total_steps=8)
    before = model[0].block_mask()
    for _ in range(4):
        model(torch.randn(4, 32, 12)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        dynamic.step()
    assert not model[0].block_mask().equal(before)
    agree(model, torch.randn(2, 32, 9))


def test_groups_and_bare_layers_are_refused():
    model = nn.Sequential(nn.Conv1d(32, 32, 3, groups=2), nn.Conv1d(32, 32, 3))
    assert {row.name: row.note for row in sparsify(model, 0.5, block=(8, 8)).rows} == {
        "0": "groups=2",
        "1": "",
    }
    with pytest.raises(InputError, match=r"a bare Conv1d .* SparseConv1d\.from_dense"):
        sparsify(nn.Conv1d(32, 32, 3))
    with pytest.raises(ValueError, match="groups=1 only"):
        SparseConv1d(32, 32, 3, groups=2)
