"""sparsify and densify on whole models, and the report they give."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from sparse_engine import SparseConv2d, SparseLinear, dense_state_dict, densify, sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.sparsity.distribution import Sparsity


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def network():
    """Return a small network with a convolution of every kind, on 8x8 images."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.Conv2d(32, 32, 3, groups=32),
        nn.Conv2d(32, 40, (3, 1), stride=2),
        nn.Flatten(),
        nn.Linear(240, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def sparse_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
@pytest.mark.parametrize("block", [(8, 8), (1, 1), "auto"])
def test_layers_get_the_planned_blocks(distribution, block):
    model = network()
    shapes = {n: model.get_submodule(n).weight.shape for n in ("0", "3", "5", "7")}
    plans = Sparsity(0.7, distribution, block).plans(shapes)
    rows = {row.name: row for row in sparsify(model, 0.7, distribution, block).rows}
    for plan in plans:
        layer = model.get_submodule(plan.name)
        if plan.is_dense:
            assert type(layer) in (nn.Conv2d, nn.Linear)
        else:
            assert layer.layout.active == layer.layout.slots == plan.active
            assert (rows[plan.name].active, rows[plan.name].total) == (plan.active, plan.total)
            assert rows[plan.name].density == layer.density
    assert model(IMAGES).shape == (2, 10)


def test_a_layer_that_erk_fills_stays_as_it_is():
    model = network()
    head, filled = model[7], sparsify(model, 0.6, "erk", (8, 8)).rows[-1]
    assert model[7] is head
    assert (filled.kind, filled.density, filled.note, filled.block) == ("Linear", 1.0, "", None)


def test_unstructured_density_is_exact():
    model = network()
    found = sparsify(model, 0.75, "erk", (1, 1))
    total = 32 * 27 + 40 * 96 + 64 * 240 + 640
    counted = [row for row in found.rows if not row.note]
    assert sum(row.weights for row in counted) == total // 4
    assert found.density == total // 4 / total


def test_groups_shared_weights_and_subclasses_are_listed_as_skipped():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(10, 64),
            "head": nn.Linear(64, 10),
            "grouped": nn.Conv2d(8, 8, 3, groups=2),
            "scaled": Scaled(64, 64),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)),
            "bounded": nn.utils.spectral_norm(nn.Linear(64, 64)),
            "plain": nn.Linear(64, 64),
        }
    )
    model["head"].weight = model["embedding"].weight
    notes = {row.name: row.note for row in sparsify(model, 0.5, block=(16, 16)).rows}
    assert notes == {
        "head": "weight shared with another module",
        "grouped": "groups=2",
        "scaled": "Scaled is a subclass",
        "normed": "weight is made by the parametrization WeightNorm",
        "bounded": "weight is made by SpectralNorm",
        "plain": "",
    }
    assert list(sparse_layers(model)) == ["plain"]


def test_skipped_layers_are_outside_the_budget():
    model = network()
    found = sparsify(model, 0.5, "uniform", (1, 1), skip=["0", "[57]"])
    assert list(sparse_layers(model)) == ["3"]
    assert {r.name: r.note for r in found.rows if r.note} == {
        "0": "skip",
        "2": "groups=32",
        "5": "skip",
        "7": "skip",
    }
    assert found.density == model[3].density == 0.5


def test_a_skip_pattern_without_a_layer_gets_the_nearest_name():
    model = nn.ModuleDict({"classifier": nn.Linear(8, 8), "body": nn.Linear(8, 8)})
    with pytest.raises(InputError, match=r"'clasifier' matches no layer; did you mean 'classi"):
        sparsify(model, 0.5, skip=["clasifier"])
    assert not sparse_layers(model)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (nn.Linear(8, 8), {}, "a bare Linear .* use SparseLinear.from_dense"),
        (nn.Conv2d(8, 8, 3), {}, "a bare Conv2d .* use SparseConv2d.from_dense"),
        (nn.ReLU(), {}, "no layer to make sparse"),
        (network(), {"init": "magnitud"}, "unknown init 'magnitud'; did you mean 'magnitude'"),
        (network(), {"sparsity": 1.0}, "below 1, found 1.0"),
        (network(), {"distribution": "erq"}, "'erq'; did you mean 'er"),
        (network(), {"sparsity": 0.99}, "lower the sparsity, use smaller blocks, or skip"),
        (network(), {"block": (0, 1)}, "two positive integers"),
    ],
)
def test_what_cannot_be_made_sparse_stays_as_it_was(model, arguments, message):
    before = [type(m) for m in model.modules()]
    with pytest.raises(InputError, match=message):
        sparsify(model, **arguments)
    assert [type(m) for m in model.modules()] == before


def test_a_bare_sparse_layer_cannot_be_made_dense_in_place():
    with pytest.raises(InputError, match=r"a bare SparseLinear is made dense by its to_dense"):
        densify(SparseLinear(32, 32))


def test_magnitude_keeps_the_strongest_blocks():
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    weight = model[0].weight.detach().clone()
    norms = weight.abs().view(4, 16, 4, 16).sum((1, 3))
    sparsify(model, 0.75, "uniform", (16, 16))
    mask = model[0].block_mask()
    assert norms[mask].min() > norms[~mask].max()
    wide = mask.repeat_interleave(16, 0).repeat_interleave(16, 1)
    assert model[0].dense_weight().equal(weight * wide)


def test_random_blocks_keep_their_weights_and_follow_the_generator():
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64))
        weight = model[0].weight.detach().clone()
        generator = torch.Generator().manual_seed(seed)
        sparsify(model, 0.75, "uniform", (8, 8), init="random", generator=generator)
        masks.append(model[0].block_mask())
        stored = model[0].dense_weight()
        assert stored[stored != 0].equal(weight[stored != 0])
        assert masks[-1].sum() == 16
    assert masks[0].equal(masks[1])
    assert not masks[0].equal(masks[2])


def test_a_module_at_two_places_is_replaced_by_one():
    shared = nn.Linear(32, 32)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))
    found = sparsify(model, 0.5, block=(16, 16))
    assert isinstance(model[0], SparseLinear)
    assert model[2][0] is model[0]
    assert len(found.rows) == 1
    assert sorted(dense_state_dict(model)) == ["0.bias", "0.weight", "2.0.bias", "2.0.weight"]
    densify(model)
    assert model[2][0] is model[0]
    assert type(model[0]) is nn.Linear


def test_modes_dtypes_and_frozen_weights_are_kept():
    model = network().double().eval()
    model[5].weight.requires_grad_(False)
    model[5].train()
    sparsify(model, 0.5, "uniform", (8, 8))
    assert [m.training for m in sparse_layers(model).values()] == [False, False, True, False]
    assert [m.values.requires_grad for m in sparse_layers(model).values()] == [1, 1, 0, 1]
    assert all(p.dtype == torch.float64 for p in model.parameters())


def test_densify_round_trip():
    model = network()
    sparsify(model, 0.6, "erk", (8, 8))
    wanted = model.eval()(IMAGES)
    state = dense_state_dict(model)
    assert densify(model) is model
    assert not sparse_layers(model)
    torch.testing.assert_close(model(IMAGES), wanted)
    assert set(state) == set(network().state_dict())
    assert all(state[k].equal(v) for k, v in model.state_dict().items())
    network().load_state_dict(state)


def test_a_dense_state_loads_into_a_sparse_model():
    source, model = network(), network()
    sparsify(model, 0.6, "uniform", (8, 8))
    model.load_state_dict(source.state_dict())
    sparsify(source, 0.6, "uniform", (8, 8))
    torch.testing.assert_close(model(IMAGES), source(IMAGES))


def test_no_sparsity_changes_nothing():
    model = network()
    before = list(model)
    found = sparsify(model, 0)
    assert all(a is b for a, b in zip(model, before))
    assert found.density == 1


@pytest.mark.parametrize("init", ["random", "magnitude"])
def test_a_model_on_the_meta_device(init):
    with torch.device("meta"):
        model = network()
    found = sparsify(model, 0.6, "uniform", (8, 8), init=init)
    source = network()
    twin = sparsify(copy.deepcopy(source), 0.6, "uniform", (8, 8))
    assert [r.stored_bytes for r in found.rows] == [r.stored_bytes for r in twin.rows]
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu").load_state_dict(source.state_dict())
    sparsify(source, 0.6, "uniform", (8, 8))
    torch.testing.assert_close(model.eval()(IMAGES), source.eval()(IMAGES))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_torchvision_models(name):
    model = getattr(torchvision.models, name)(num_classes=10)
    keys = set(model.state_dict())
    found = sparsify(model, 0.8, block=(32, 32))
    counted = [row for row in found.rows if not row.note]
    active = sum(r.weights for r in counted)
    budget = 0.2 * sum(r.dense_weights for r in counted)
    assert budget - 32 * 32 <= active <= budget * (1 + 1e-9)
    grouped = [r for r in found.rows if r.note]
    assert len(grouped) == {"resnet18": 0, "mobilenet_v3_small": 11}[name]
    assert all(r.note.startswith("groups=") for r in grouped)
    assert isinstance(model.get_submodule(counted[5].name), SparseConv2d | nn.Conv2d)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    layers = sparse_layers(model)
    assert len(layers) > 10
    assert all(m.values.grad.isfinite().all() for m in layers.values())
    assert set(dense_state_dict(model)) == keys
