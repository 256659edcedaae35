"""Writes to a layer's weight: those that its blocks take, those that are refused, and readers."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from sparse_engine import DynamicSparsity, SparseConv2d, SparseLinear, densify, sparsify
from sparse_engine.errors import InputError
from sparse_kernels.operators.reference import scatter_blocks

LAYERS = {
    "linear": lambda: SparseLinear(16, 24, density=0.4, block=(8, 8)),
    "ragged linear": lambda: SparseLinear(21, 13, density=0.4, block=(8, 4)),
    "convolution": lambda: SparseConv2d(13, 17, 3, density=0.4, block=(8, 4), taps="all"),
    "single weights": lambda: SparseLinear(9, 11, density=0.3, block=(1, 1)),
}
INITIALISERS = {
    **{
        name: getattr(nn.init, f"{name}_")
        for name in ("uniform", "normal", "trunc_normal", "zeros", "orthogonal", "eye", "dirac")
    },
    **{f"{k} {d}": getattr(nn.init, f"{k}_{d}_")
       for k in ("kaiming", "xavier") for d in ("uniform", "normal")},
    "constant": lambda w: nn.init.constant_(w, 7.0),
    "sparse": lambda w: nn.init.sparse_(w, 0.3),
    "apply, as programs do": lambda w: w.data.normal_(0, 0.02),
    "data": lambda w: setattr(w, "data", torch.randn_like(w)),
}  # fmt: skip
OPERATORS = {
    "fill": lambda w: w.fill_(3),
    "a chain": lambda w: w.mul_(0.5).add_(1).clamp_(-2, 2),
    "copy": lambda w: w.copy_(torch.randn(w.shape)),
    "a row": lambda w: w.__setitem__(0, 0),
    "a mask": lambda w: w.__setitem__(w > 0, -1),
    "out": lambda w: torch.add(w, 1, out=w),
    "foreach": lambda w: torch._foreach_add_([w], [torch.ones(w.shape)]),
    "view of a view": lambda w: w[1:][0][2:4].zero_(),
    "flat view": lambda w: w.view(-1).normal_(),
    "transposed": lambda w: w.transpose(0, 1).copy_(torch.randn(w.shape).transpose(0, 1)),
    "iteration": lambda w: [row.mul_(i) for i, row in enumerate(w)],
    "parts": lambda w: w.split(5)[1].zero_(),
    "detached": lambda w: w.detach().mul_(3),
    "in place": lambda w: F.relu(w, inplace=True),
    "operator": lambda w: torch.ops.aten.mul_.Tensor(w, torch.tensor(2.0)),
}


@pytest.mark.parametrize("layer_name", LAYERS)
def test_a_write_has_the_effect_of_one_to_a_dense_weight(layer_name):
    for name, write in {**INITIALISERS, **OPERATORS}.items():
        layer = LAYERS[layer_name]()
        weight, dense = layer.weight, layer.to_dense()
        with torch.no_grad():  # a weight that was read before is read again
            layer.values.mul_(1.5)
            dense.weight.mul_(1.5)
        try:
            with torch.set_grad_enabled(name in INITIALISERS):
                torch.manual_seed(1)
                write(dense.weight)
        except ValueError:  # an initialiser of another number of dimensions
            continue
        with torch.set_grad_enabled(name in INITIALISERS):
            torch.manual_seed(1)
            write(weight)
        ones, layout = torch.ones_like(layer.values), layer.layout
        mask = scatter_blocks(ones, layout.tensors(), layout.sizes()).view(weight.shape)
        wanted = (dense.weight * mask).detach()
        assert layer.dense_weight().equal(wanted), name
        assert weight.detach().equal(wanted), name


def test_a_write_where_gradients_are_recorded_is_refused():
    for name, write in OPERATORS.items():
        layer = LAYERS["linear"]()
        values, weight = layer.values.detach().clone(), layer.weight
        if name in ("detached", "out"):
            continue  # as for a parameter: an effect, PyTorch's error
        with pytest.raises(RuntimeError, match=r"under torch\.no_grad\(\)"):
            write(weight)
        assert layer.values.equal(values), name
    with pytest.raises(RuntimeError, match="gradients are recorded"):
        layer.weight += 1
    with torch.no_grad():
        layer.weight += 1
        with pytest.raises(RuntimeError, match="keeps its shape"):
            layer.weight.t_()
        with pytest.raises(RuntimeError, match="data of a sparse layer's weight stay"):
            layer.weight.data = torch.zeros(3)
    torch.testing.assert_close(layer.values, nn.Parameter(values + 1))
    layer.requires_grad_(False).weight.fill_(2)
    assert layer.values.eq(2).all()


def test_initialisers_of_a_model_take_effect_in_inference_mode_too():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    sparsify(model, 0.5, "uniform", (8, 8))
    model.apply(lambda m: nn.init.constant_(m.weight, 2.0) if hasattr(m, "weight") else None)
    assert all(model[i].values.eq(2).all() for i in (0, 2))
    with torch.inference_mode():
        model[0].weight[0] = 3.0
    assert model[0].dense_weight()[0].unique().tolist() == [0, 3]


def test_code_that_reads_sees_a_tensor_like_any():
    layer, x = LAYERS["linear"](), torch.randn(5, 16)
    weight = layer.weight
    assert not isinstance(weight, nn.Parameter)
    assert {type(t) for t in (weight + 1, weight.sum(), F.linear(x, weight))} == {torch.Tensor}
    weight.retain_grad()
    F.linear(x, weight).square().sum().backward()
    found, layer.values.grad = layer.values.grad, None
    (layer(x) - layer.bias).square().sum().backward()
    torch.testing.assert_close(layer.values.grad, found)
    assert weight.grad.shape == weight.shape
    file = io.BytesIO()
    torch.save(layer.weight, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert type(loaded) is type(copy.deepcopy(layer.weight.detach())) is torch.Tensor
    assert loaded.equal(layer.dense_weight())
    assert f"{layer.weight.detach()[0, 0]:.3f}" == f"{loaded[0, 0].item():.3f}"
    product = torch.func.vmap(lambda x: F.linear(x, layer.weight) + F.linear(x, weight))
    torch.testing.assert_close(product(x), 2 * F.linear(x, weight))
    assert type(layer.to("meta").weight) is torch.Tensor


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_twin_takes_the_fast_path_that_torch_takes():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    sparsify(encoder, 0.5, "uniform", (8, 8), skip=["*self_attn*"])
    x, hidden = torch.randn(2, 5, 16), torch.zeros(2, 5, dtype=torch.bool)
    hidden[1, 3:] = True
    with torch.no_grad():
        found = encoder(x, src_key_padding_mask=hidden)
        densify(encoder)
        torch.testing.assert_close(found, encoder(x, src_key_padding_mask=hidden))


class Exponential(nn.Module):
    def forward(self, x):
        return x.exp()

    def right_inverse(self, x):
        return x.abs().clamp(min=1e-3).log()


def globally(layer, name):
    prune.global_unstructured([(layer, name)], prune.L1Unstructured, amount=0.5)


TOOLS = {
    "l1": lambda m, name: prune.l1_unstructured(m, name, 0.5),
    "structured": lambda m, name: prune.random_structured(m, name, 0.5, 0),
    "mask": lambda m, name: prune.custom_from_mask(m, name, torch.ones_like(getattr(m, name))),
    "global": globally,
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "new weight_norm": parametrizations.weight_norm,
    "new spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "own": lambda m, name: parametrize.register_parametrization(m, name, Exponential()),
    "unsafe": lambda m, name: parametrize.register_parametrization(
        m, name, Exponential(), unsafe=True
    ),
    "taken out": lambda m, name: m._parameters.__delitem__(name),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("tool", TOOLS)
def test_what_would_replace_weight_or_values_is_refused_and_nothing_has_changed(tool):
    for name in ("weight", "values"):
        layer = LAYERS["linear"]()
        assert layer.weight.any()  # notes that it was read
        before = copy.deepcopy(layer.state_dict()), list(vars(layer)), layer.values
        with pytest.raises(InputError, match=r"before sparsify"):
            TOOLS[tool](layer, name)
        assert type(layer) is SparseLinear
        assert layer.values is before[2]
        assert not layer._forward_pre_hooks
        assert list(vars(layer)) == before[1]
        assert list(layer.state_dict()) == list(before[0])
        assert all(v.equal(before[0][k]) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("tool", ["l1", "own"])
def test_a_bias_may_be_made_by_a_tool_and_updates_go_on(tool):
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    sparsify(model, 0.5, "uniform", (8, 8))
    TOOLS[tool](model[0], "bias")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dynamic = DynamicSparsity(model, optimizer, rule="rigl", interval=1, total_steps=100)
    ids, x = model[0].block_ids.clone(), torch.randn(4, 16)
    model(x).square().mean().backward()
    optimizer.step()
    assert dynamic.step()
    assert not model[0].block_ids.equal(ids)
    wanted = model(x)
    with pytest.raises(InputError, match=r"prune\.remove"):
        densify(model)
    if tool == "own":
        assert copy.deepcopy(model)(x).equal(wanted)
        parametrize.remove_parametrizations(model[0], "bias")
    else:
        prune.remove(model[0], "bias")
    densify(model)
    torch.testing.assert_close(model(x), wanted)
