"""What hangs on a layer is on the one that takes its place, or is named in one warning."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparse_engine import SparseLinear, densify, sparsify
from sparse_engine.errors import InputError, ReplacedLayerWarning
from sparse_engine.layers.surgery import change_layouts, replace_modules, used_layouts
from sparse_kernels.operators.reference import gather_blocks

CALLS = []
X = torch.linspace(-1, 1, 48).view(3, 16).requires_grad_()


def noting(name):
    return lambda *_: CALLS.append(name)


def add_key(module, state, prefix, _):
    CALLS.append("state")
    state[f"{prefix}mine"] = torch.ones(1)


def take_key(module, state, prefix, *_):
    CALLS.append("load")
    del state[f"{prefix}mine"]


def sparse(model, **options):
    sparsify(model, 0.5, "uniform", (8, 8), **options)


def network():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))


def hooked():
    model = network()
    layer = model[0]
    layer.register_forward_pre_hook(noting("pre"))
    layer.register_forward_pre_hook(noting("pre with"), with_kwargs=True, prepend=True)
    handle = layer.register_forward_hook(noting("forward"))
    layer.register_forward_hook(noting("always"), prepend=True, always_call=True)
    layer.register_full_backward_pre_hook(noting("backward pre"))
    layer.register_full_backward_hook(noting("backward"))
    layer.register_state_dict_pre_hook(noting("state pre"))
    layer.register_state_dict_post_hook(add_key)
    layer.register_load_state_dict_pre_hook(take_key)
    layer.register_load_state_dict_post_hook(noting("loaded"))
    layer.bias.register_hook(noting("bias"))
    layer.bias.register_post_accumulate_grad_hook(noting("bias kept"))
    return model, handle


def calls(model):
    CALLS.clear()
    model(X).square().sum().backward()
    model.load_state_dict(model.state_dict())
    return list(CALLS)


def test_hooks_are_called_as_before_and_their_handles_remove_them():
    model, handle = hooked()
    before = calls(model)
    assert len(before) == 12
    sparse(model)
    assert calls(model) == before
    replace_modules(model, change_layouts(model, used_layouts(model)))
    assert calls(model) == before
    densify(model)
    assert calls(model) == before
    handle.remove()
    assert calls(model) == [name for name in before if name != "forward"]


def test_load_hooks_are_given_the_new_module():
    model, seen = network(), []
    model[0].register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    sparse(model)
    model.load_state_dict(model.state_dict())
    assert seen == [model[0]]


def test_attributes_gradients_and_members_go_along_and_back():
    model = network()
    layer, note = model[0], [1]
    layer.lr_scale, layer.note, layer._is_hf_initialized, layer._version = 2, note, True, 3
    layer.weight.no_decay, layer.bias.is_expert = True, True
    layer.weight.importance = torch.arange(512.0).view(32, 16)
    layer.register_buffer("count", torch.zeros(1))
    layer.register_buffer("passing", torch.zeros(1), persistent=False)
    layer.register_parameter("gain", nn.Parameter(torch.ones(1)))
    layer.adapter, bias = nn.Linear(2, 2, dtype=torch.float64), layer.bias
    members = (layer.count, layer.gain, layer.adapter)
    layer.weight.requires_grad_(False)
    model[2].eval()
    model(X).sum().backward()
    gradient, importance = model[2].weight.grad, layer.weight.importance
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse(model, skip=["0.adapter"])
    layout = model[2].layout
    assert model[2].values.grad.equal(
        gather_blocks(gradient.view(layout.shape), layout.tensors(), layout.sizes())
    )
    assert model[0].values.importance.shape == model[0].values.shape
    assert any(p is bias for p in optimizer.param_groups[0]["params"])
    for weight in ("values", "weight"):
        layer = model[0]
        assert (layer.lr_scale, layer._is_hf_initialized, layer._version) == (2, True, 3)
        assert layer.note is note
        parameter = layer._parameters[weight]
        assert (parameter.no_decay, parameter.requires_grad) == (True, False)
        assert layer.bias is bias
        assert bias.is_expert
        assert (layer.count, layer.gain, layer.adapter) == members
        assert layer._non_persistent_buffers_set >= {"passing"}
        assert (layer.training, model[2].training) == (True, False)
        assert model[2]._parameters[weight].grad is not None
        if weight == "values":
            assert copy.deepcopy(model)[0].lr_scale == 2
            densify(model)
    kept = layer.weight.importance != 0
    assert layer.weight.importance[kept].equal(importance[kept])
    assert set(vars(layer)) - set(vars(nn.Linear(1, 1))) == {
        *("lr_scale", "note", "_is_hf_initialized", "_version")
    }


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_is_not_carried_over_is_named_in_one_warning():
    model = network()
    model[0].weight.register_hook(lambda gradient: gradient)
    model[0].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    model[2].reset_parameters, model[2].density = int, 0.3
    model[2].weight.chosen = torch.ones(8, 32, dtype=torch.bool)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sparse(model)
    (warning,) = caught
    assert issubclass(warning.category, ReplacedLayerWarning)
    assert issubclass(warning.category, UserWarning)
    for words in ("'0' (2 hooks of the gradient", "'2' (", "reset_parameters", "density", "chosen"):
        assert words in str(warning.message)
    model[0].compile()
    model[2].__class__ = type("Mine", (SparseLinear,), {})
    with pytest.warns(ReplacedLayerWarning, match=r"'0' \(compile\(\)\); .*'2' \(its class Mine\)"):
        densify(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_forward_of_its_own_is_refused_and_a_compiled_layer_is_skipped():
    model = network()
    first = model[0]
    model[2].forward = lambda x: x[:, :8]
    with pytest.raises(InputError, match=r"layer '2' has a forward of its own.*skip=\['2\*'\]"):
        sparse(model)
    assert model[0] is first
    del model[2].forward
    first.compile()
    rows = sparsify(model, 0.5, "uniform", (8, 8)).rows
    assert "compiled by itself" in str(rows)
    assert model[0] is first
    accelerate = pytest.importorskip("accelerate.hooks")
    model = network()
    accelerate.add_hook_to_module(model[2], accelerate.ModelHook())
    with pytest.raises(InputError, match="accelerate"):
        sparse(model)
    accelerate.remove_hook_from_module(model[2])
    sparse(model)
    assert "forward" not in vars(model[2])


def test_attentions_keep_hooks_attributes_and_gradients():
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0))
    attention, seen = model[0].self_attn, []
    attention.scale, attention.in_proj_weight.no_decay, attention.in_proj_bias.tag = 2, True, "b"
    attention.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    model(X.detach()[None]).square().sum().backward()
    gradient = attention.in_proj_weight.grad
    sparse(model)
    query = model[0].self_attn.q_proj
    assert (query.values.no_decay, query.bias.tag) == (True, "b")
    assert query.bias.grad.equal(attention.in_proj_bias.grad[:16])
    model(X.detach()[None])
    assert seen[-1] == "ProjectedAttention"
    densify(model)
    dense = model[0].self_attn
    assert (dense.scale, dense.in_proj_weight.no_decay, dense.in_proj_bias.tag) == (2, True, "b")
    kept = dense.in_proj_weight.grad != 0
    assert dense.in_proj_weight.grad[kept].equal(gradient[kept])
    assert 0.4 < kept.float().mean() < 0.6
    dense.in_proj_weight.register_hook(lambda gradient: gradient)
    with pytest.warns(ReplacedLayerWarning, match="'0.self_attn' .*in_proj_weight"):
        sparse(model)


def test_a_bias_that_is_shared_stays_shared_and_one_that_is_computed_stays_dense():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].bias = model[0].bias
    sparse(model)
    assert model[0].bias is model[1].bias
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    prune.random_unstructured(model[0], "bias", 0.5)
    assert "bias is made by RandomUnstructured" in str(sparsify(model, 0.5, "uniform", (8, 8)))
