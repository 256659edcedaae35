"""sparsify on many families of models, and on models that are shared, lazy or wrapped."""

import copy
import io
from functools import partial

import pytest
import torch
import torch.distributed as dist
from any_models import BLOCK, CLASSES, IMAGES, MODELS, Encoder, sparse_layers
from pruning import strongest
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparse_engine import DynamicSparsity, SparseLinear, dense_state_dict, densify, report, sparsify
from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.layers.base import WEIGHT_READ, SparseLayer
from sparse_engine.methods.resolve import resolve
from sparse_engine.sparsity.averaging import average_networks

LABELS = torch.arange(4) % CLASSES
# Its attention passes the weights of its projections on, and calls neither.
READ = {"swin": ("qkv", "proj")}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def train_step(model, rate=1e-3):
    """Take one step of RigL, whose update is in the same step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    dynamic = DynamicSparsity(model, optimizer, "rigl", interval=1, total_steps=4)
    loss = nn.functional.cross_entropy(model(IMAGES), LABELS)
    loss.backward()
    assert loss.isfinite()
    optimizer.step()
    assert dynamic.step()


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_saves_loads_and_becomes_dense(name):
    model = MODELS[name]()
    keys = set(model.state_dict())
    found = sparsify(model, 0.7, "uniform", BLOCK)
    layers = sparse_layers(model)
    assert len(layers) > 2
    for row in found.rows:
        one_block = row.dense_weights <= 16
        assert row.name in layers or row.note.startswith("groups=") or one_block, row
    train_step(model)
    for layer_name, layer in layers.items():
        assert layer.values.grad.isfinite().all()
        read = layer_name.split(".")[-1] in READ.get(name, ())
        ran_on = (WEIGHT_READ,) if read else ("native", "masked")
        assert layer.ran_on.startswith(ran_on), layer_name
    twin = MODELS[name]()
    sparsify(twin, 0.7, "uniform", BLOCK, init="random")
    twin.load_state_dict(saved_and_loaded(model.state_dict()))
    wanted = model.eval()(IMAGES)
    torch.testing.assert_close(twin.eval()(IMAGES), wanted)
    dense = MODELS[name]()
    dense.load_state_dict(saved_and_loaded(dense_state_dict(model)))
    densify(model)
    assert set(model.state_dict()) == keys
    assert not sparse_layers(model)
    for plain in (dense, model):
        torch.testing.assert_close(plain.eval()(IMAGES), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("backend", "kernel"),
    [
        ("native", 1),
        ("native", 3),
        ("native", None),
        ("masked", 3),
        ("triton", 1),
        ("triton", None),
    ],
)
def test_an_activation_may_work_in_place(backend, kernel, monkeypatch, triton_backend):
    monkeypatch.setenv("SPARSE_ENGINE_BACKEND", backend)
    dense = nn.Linear(32, 32) if kernel is None else nn.Conv2d(32, 32, kernel)
    model = nn.Sequential(nn.Sequential(dense), nn.ReLU(inplace=True))
    sparsify(model, 0.5, "uniform", (16, 16))
    x = torch.randn(*((4, 32) if kernel is None else (4, 32, 3, 3)))
    wanted = model[0](x).relu()
    expected = torch.autograd.grad(wanted.square().sum(), model[0][0].values)
    for armed in (False, True):
        if armed:
            model[0][0].collect()
        found = model(x)
        torch.testing.assert_close(found, wanted)
        gradient = torch.autograd.grad(found.square().sum(), model[0][0].values)
        torch.testing.assert_close(gradient, expected)


def test_hooks_go_along():
    model, called = nn.Sequential(nn.Linear(32, 32)), []
    handle = model[0].register_forward_hook(lambda *_: called.append(1))
    sparsify(model, 0.5, block=(8, 8))
    model(torch.randn(1, 32))
    handle.remove()
    model(torch.randn(1, 32))
    assert called == [1]


def test_weights_that_two_modules_share_stay_shared():
    model = nn.ModuleDict({n: nn.Linear(16, 16) for n in ("first", "second", "alone")})
    model["second"].weight = model["first"].weight
    sparsify(model, 0.5, block=(8, 8))
    assert model["second"].weight is model["first"].weight
    assert list(sparse_layers(model)) == ["alone"]


def test_a_weight_of_another_kind_stays():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[0].weight = type("Quantised", (nn.Parameter,), {})(torch.randn(32, 32))
    notes = [row.note for row in sparsify(model, 0.5, block=(8, 8)).rows]
    assert notes == ["weight is a Quantised", ""]


@pytest.mark.parametrize("layer", [nn.LazyLinear(16), nn.LazyConv2d(16, 3)])
def test_a_lazy_layer_is_refused_until_it_has_a_shape(layer):
    model = nn.Sequential(nn.Identity(), layer, nn.Identity())
    for change in (sparsify, densify, report):
        with pytest.raises(InputError, match=r"layer '1' \(Lazy.* run the model once"):
            change(model)
    model(torch.randn(1, 16, 5, 5) if "Conv" in type(layer).__name__ else torch.randn(1, 16))
    sparsify(model, 0.5, block=(8, 8))
    assert isinstance(model[1], SparseLayer)


def test_a_model_in_a_data_parallel_wrapper_is_refused(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(nn.Sequential(nn.Linear(16, 16)))
    finally:
        dist.destroy_process_group()
    for model, where in ((wrapped, "the model"), (nn.Sequential(wrapped), "module '0'")):
        for change in (sparsify, densify):
            with pytest.raises(InputError, match=f"{where} is wrapped in DistributedDataParallel"):
                change(model)
    assert report(wrapped).rows[0].name == "module.0"
    assert type(wrapped.module[0]) is nn.Linear


@pytest.mark.parametrize("name", ["DataParallel", "FullyShardedDataParallel", "FSDPModule"])
def test_other_wrappers_are_refused_by_their_names(name):
    wrapped = type(f"Sharded{name}", (type(name, (nn.Sequential,), {}),), {})(nn.Linear(16, 16))
    with pytest.raises(InputError, match=f"wrapped in {name}, which holds"):
        sparsify(wrapped)


def test_a_compiled_model_is_compiled_anew():
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    compiled, x = torch.compile(model, backend="eager"), torch.randn(3, 32)
    dense = compiled(x)
    found = sparsify(compiled, 0.5, "uniform", (4, 4))
    assert [row.name for row in found.rows] == ["0", "2"]
    assert not torch.allclose(compiled(x), dense)
    torch.testing.assert_close(compiled(x), model(x))
    assert densify(compiled) is compiled
    assert type(model[0]) is nn.Linear


def test_a_layer_compiled_by_itself_is_skipped():
    model = nn.Sequential(nn.Linear(32, 32), torch.compile(nn.Linear(32, 32), backend="eager"))
    notes = [row.note for row in sparsify(model, 0.5, block=(8, 8)).rows]
    assert notes == ["", "compiled by itself"]
    assert isinstance(model[0], SparseLinear)


def test_report_counts_everything_and_tells_of_spare_slots():
    model = nn.Sequential(nn.Embedding(5, 32), nn.Linear(32, 32), nn.LayerNorm(32))
    found = sparsify(model, 0.75, "uniform", (8, 8), headroom=0.5)
    assert found.other_parameters == 5 * 32 + 32 + 2 * 32
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    assert found.stored_bytes - found.index_bytes + found.other_bytes == total
    assert "4+2 spare/16" in str(found)
    assert str(found).splitlines()[-1].split() == ["all", "else", "256", "1024"]
    model[1](torch.randn(2, 32))
    size = found.stored_bytes
    assert (
        f"density=0.25, block=(8, 8), blocks=4/16, bytes={size}, ran_on='{model[1].ran_on}'"
        in repr(model)
    )


def test_a_subclass_of_the_same_name_is_told_apart():
    model = nn.Sequential(nn.Linear(32, 32), type("Linear", (nn.Linear,), {})(32, 32))
    notes = [row.note for row in sparsify(model, 0.5, block=(8, 8)).rows]
    assert notes == ["", f"{__name__}.Linear is a subclass"]


def test_averaged_transformers_keep_their_sparse_projections():
    model = Encoder(batch_first=True)
    sparsify(model, 0.5, "uniform", BLOCK)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3)
    config = resolve(Config(block="4x4", sparsity=0.5))
    prune = partial(strongest, sparsity=0.5, config=config)
    mean = average_networks(other, model.state_dict(), 0.5, prune, [IMAGES])
    name = "encoder.layers.0.self_attn.k_proj"
    assert isinstance(mean.get_submodule(name), SparseLinear)
    assert len(sparse_layers(mean)) == len(sparse_layers(model))
    found, wanted = (m.get_submodule(name).dense_weight() for m in (mean, model))
    both = (found != 0) & (wanted != 0)
    assert both.any()
    torch.testing.assert_close(found[both], 2 * wanted[both])
