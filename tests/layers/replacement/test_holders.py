"""Layers that a model holds in other places are replaced there too, or refused by name."""

import collections
import functools
import itertools
import types
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from sparse_engine import DynamicSparsity, SparseLinear, densify, sparsify
from sparse_engine.errors import InputError, ReplacedLayerWarning
from sparse_engine.layers.replacement import holders
from sparse_engine.layers.state_dict import load_state
from sparse_engine.layers.surgery import change_layouts, replace_modules, used_layouts

LAYERS = []  # which a forward below reads


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 8)


class Other(Net):
    """Whose class may be changed by a test."""


class Reading(Net):
    def forward(self, x):
        return LAYERS[1](LAYERS[0](x).relu())


class Slotted:
    __slots__ = ("__own", "layer")

    def __init__(self, layer):
        self.layer = self.__own = layer

    def run(self, x):
        return self.__own(x)


@dataclass(frozen=True)
class Frozen:
    layer: object


Pair = collections.namedtuple("Pair", "number layer")


def on(model, value):
    model.held = value


def beside(model, value):
    object.__setattr__(model, "held", value)


def below(model, value):
    model.__dict__["held"] = value


def of_class(model, value):
    type(model).held = value


PLACES = {
    "list": (lambda layer: [layer], lambda held: held[0]),
    "dict": (lambda layer: {"a": layer}, lambda held: held["a"]),
    "key": (lambda layer: {layer: 1}, lambda held: next(iter(held))),
    "ordered": (lambda layer: collections.OrderedDict(a=layer), lambda held: held["a"]),
    "set": (lambda layer: {layer, 3}, lambda held: next(m for m in held if m != 3)),
    "frozenset": (lambda layer: frozenset([layer]), lambda held: next(iter(held))),
    "deque": (lambda layer: collections.deque([layer], 3), lambda held: held[0]),
    "array": (lambda layer: np.array([layer, None], dtype=object), lambda held: held[0]),
    "nested": (lambda layer: [({"a": (1, [layer])},)], lambda held: held[0][0]["a"][1][0]),
    "namedtuple": (lambda layer: Pair(1, layer), lambda held: held.layer),
    "frozen dataclass": (lambda layer: Frozen((layer,)), lambda held: held.layer[0]),
    "namespace": (lambda layer: types.SimpleNamespace(a=layer), lambda held: held.a),
    "slots": (Slotted, lambda held: held.layer),
    "method of a helper": (lambda layer: Slotted(layer).run, lambda held: held.__self__.layer),
    "bound method": (lambda layer: layer.forward, lambda held: held.__self__),
    "call": (lambda layer: layer.__call__, lambda held: held.__self__),
    "partial": (lambda layer: functools.partial(layer), lambda held: held.func),
    "argument": (lambda layer: functools.partial(map, layer), lambda held: held.args[0]),
    "weak reference": (weakref.ref, lambda held: held()),
    "weak method": (lambda layer: weakref.WeakMethod(layer.forward), lambda held: held().__self__),
    "weak set": (lambda layer: weakref.WeakSet([layer]), lambda held: next(iter(held))),
    "weak values": (lambda layer: weakref.WeakValueDictionary(a=layer), lambda held: held["a"]),
    "weak keys": (lambda layer: weakref.WeakKeyDictionary({layer: 1}), lambda h: next(iter(h))),
    "unregistered module": (lambda layer: [nn.Sequential(layer)], lambda held: held[0][0]),
    "iterator of a list": (lambda layer: iter([layer]), next),
}


@pytest.mark.parametrize("way", [on, beside, below, of_class], ids=lambda way: way.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_what_a_model_holds_is_replaced_and_replaced_back(way, place):
    model, (make, find) = Other(), PLACES[place]
    held = make(model.first)
    way(model, held)
    sparsify(model, 0.5, "uniform", (8, 8))
    if place == "iterator of a list":
        assert next(model.held) is model.first
        return
    assert type(model.first) is SparseLinear
    assert find(model.held) is model.first
    if place in ("list", "dict", "set", "deque", "slots", "nested"):
        assert model.held is held
    densify(model)
    assert type(model.first) is nn.Linear
    assert find(model.held) is model.first


UNCHANGEABLE = {
    "closure": (lambda layer: lambda x: layer(x), "(variable 'layer' of a closure)"),
    "default": (lambda layer: lambda x, f=layer: f(x), "(a default argument)"),
    "iterator": (lambda layer: iter((layer, 1)), "(a tuple_iterator)"),
    "map": (lambda layer: map(layer, []), "(a map)"),
    "cycle": (lambda layer: itertools.cycle((layer,)), "(a cycle)"),
    "read only": (lambda layer: types.MappingProxyType({"a": layer}), "['a']"),
    "weight": (lambda layer: [layer.weight], "[0]"),
}


@pytest.mark.parametrize("place", UNCHANGEABLE)
def test_what_cannot_be_exchanged_is_refused_by_name_before_anything_is_changed(place):
    model, (make, label) = Net(), UNCHANGEABLE[place]
    first, second, model.order = model.first, model.second, [model.second, (model.first,)]
    inside, model.attention = model.order[1], nn.MultiheadAttention(16, 2)
    attention, model.held = model.attention, make(first)
    with pytest.raises(InputError) as raised:
        sparsify(model, 0.5, "uniform", (8, 8))
    said = str(raised.value)
    assert "layer 'first' is also held in Net.held" in said, said
    assert label in said
    assert said.endswith("skip=['first']")
    assert "\n" not in said
    assert (model.first, model.second, model.attention) == (first, second, attention)
    assert model.order[0] is second
    assert model.order[1] is inside
    sparsify(model, 0.5, "uniform", (8, 8), skip=["first"])
    assert model.order == [model.second, (first,)]
    assert type(model.second) is SparseLinear


def test_every_way_of_replacing_finds_them():
    model = Net()
    model.order = (model.first, [model.second])
    sparsify(model, 0.5, "uniform", (8, 8))
    replace_modules(model, change_layouts(model, used_layouts(model)))
    assert (model.order[0], model.order[1][0]) == (model.first, model.second)
    dense = Net()
    dense.order = [dense.first, dense.second]
    load_state(dense, model.state_dict())
    assert dense.order == [dense.first, dense.second]
    assert dense.order[0].block_ids.equal(model.first.block_ids)
    model.bad = lambda x, f=model.first: f(x)
    for call in (densify, lambda m: replace_modules(m, change_layouts(m, used_layouts(m)))):
        first = model.first
        with pytest.raises(InputError, match=r"layer .first. is also held in Net\.bad"):
            call(model)
        assert model.first is first


def test_attentions_and_their_projections_are_replaced_where_they_are_held():
    model = nn.TransformerEncoderLayer(16, 2, 32)
    model.held = {"a": model.self_attn, "b": (model.self_attn.out_proj,)}
    for change in (lambda m: sparsify(m, 0.5, "uniform", (8, 8)), densify):
        change(model)
        assert model.held == {"a": model.self_attn, "b": (model.self_attn.out_proj,)}
    attention, model.bad = model.self_attn, lambda x, f=model.self_attn: f(x, x, x)
    with pytest.raises(InputError, match=r"'self_attn' is also held .* skip=\['self_attn\.\*'\]"):
        sparsify(model, 0.5, "uniform", (8, 8))
    assert model.self_attn is attention
    sparsify(model, 0.5, "uniform", (8, 8), skip=["self_attn.*"])
    assert model.self_attn is attention is model.held["a"]


def test_a_layer_in_two_places_in_module_dicts_and_behind_a_property_is_one():
    model = Net()
    model.again, model.more = model.first, nn.ModuleDict({"a": model.first})
    type(model).shortcut = property(lambda self: self._parts[0])
    model._parts = [model.first]
    sparsify(model, 0.5, "uniform", (8, 8))
    replace_modules(model, change_layouts(model, used_layouts(model)))
    assert model.first is model.again is model.more["a"] is model.shortcut
    assert type(model.first) is SparseLinear


def test_global_lists_that_a_forward_reads_are_followed():
    model = Reading()
    LAYERS[:] = model.first, model.second
    sparsify(model, 0.5, "uniform", (8, 8))
    assert [model.first, model.second] == LAYERS


def test_circles_copies_and_large_data(monkeypatch):
    model = Net()
    model.me, model.data = [model], list(range(100_000))
    model.circle = ([],)
    model.circle[0].append((model.circle, model.first))
    sparsify(model, 0.5, "uniform", (8, 8))
    assert model.circle[0][0] == (model.circle, model.first)
    monkeypatch.setattr(holders, "MOST_OBJECTS", 100)
    model.data = [[] for _ in range(200)]
    with pytest.warns(ReplacedLayerWarning, match="more objects than are searched"):
        densify(model)


def test_a_network_that_runs_from_a_list_learns():
    class Listed(Net):
        def __init__(self):
            super().__init__()
            self.order = [self.first, self.second]

        def forward(self, x):
            return self.order[1](self.order[0](x).relu())

    torch.manual_seed(0)
    model = Listed()
    sparsify(model, 0.5, "uniform", (8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    dynamic = DynamicSparsity(model, optimizer, rule="set", interval=5, total_steps=60)
    losses = []
    for _ in range(60):
        x = torch.randn(128, 16)
        losses.append(nn.functional.cross_entropy(model(x), x[:, :8].argmax(1)))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
        dynamic.step()
    assert losses[-1] < losses[0] - 0.2
