"""Pruning keeps the strongest blocks of all layers, exactly to the budget."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning import strongest
from torch import nn

from sparse_engine import sparsify
from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.layers.candidates import dense_layers
from sparse_engine.layers.surgery import (
    change_layouts,
    model_density,
    replace_modules,
    used_layouts,
)
from sparse_engine.sparsity.pruning import select_globally


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 24, 3), nn.Conv2d(24, 20, 1), nn.Linear(64, 10))


def prune(model, sparsity, **settings):
    config = Config(**{"block": "8x8", **settings})
    replace_modules(
        model,
        change_layouts(model, strongest(model, sparsity, config)),
    )


def test_unstructured_pruning_keeps_the_largest_weights_of_all_layers():
    model = small_model()
    weights = {n: m.weight.detach().clone() for n, m in dense_layers(model)}
    ranked = torch.cat([w.abs().flatten() for w in weights.values()]).sort(descending=True).values
    count = math.floor(0.3 * len(ranked))
    prune(model, 0.7, block="1x1")
    kept = {n: model.get_submodule(n).weight for n in weights}
    assert sum(int((w != 0).sum()) for w in kept.values()) == count
    for name, weight in kept.items():
        strong = weights[name].abs() >= ranked[count - 1]
        assert torch.equal(weight != 0, strong)
        assert torch.equal(weight, weights[name] * strong)


@pytest.mark.parametrize("block", ["1x1", "4x4", "8x8", "3x5"])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_the_budget_is_exact_in_whole_blocks(block, scope, sparsity):
    model = small_model()
    prune(model, sparsity, block=block, prune_scope=scope, distribution="uniform")
    total = sum(math.prod(m.weight.shape) for _, m in model.named_children())
    layouts = {n: o for n, o in used_layouts(model).items() if o is not None}
    left = (1 - sparsity - model_density(model)) * total
    assert -1e-6 * total <= left
    # Every block that is still absent is larger than what is left.
    assert all(left < math.prod(o.shape) / o.total + 1e-6 for o in layouts.values())
    assert all(o.active >= 1 for o in layouts.values())


def test_pruning_twice_is_nested_and_loses_nothing_else():
    model = small_model()
    prune(model, 0.3)
    first = {n: o.mask() for n, o in used_layouts(model).items() if o is not None}
    weights = {n: model.get_submodule(n).weight.detach().clone() for n in first}
    prune(model, 0.6)
    for name, mask in first.items():
        layer = model.get_submodule(name)
        assert not (layer.layout.mask() & ~mask).any()
        kept = layer.weight != 0
        assert torch.equal(layer.weight[kept], weights[name][kept])


def test_layers_keep_their_distribution_where_asked():
    model, twin = small_model(), small_model()
    prune(model, 0.6, prune_scope="layer", distribution="erk")
    sparsify(twin, 0.6, "erk", (8, 8))
    found, expected = used_layouts(model), used_layouts(twin)
    assert found.keys() == expected.keys()
    for name, layout in expected.items():
        if layout is None:
            assert found[name] is None
        else:
            assert torch.equal(found[name].block_ids, layout.block_ids)


def test_a_layer_of_zeros_keeps_a_block():
    model = small_model()
    model[1].weight.data.zero_()
    prune(model, 0.6)
    assert used_layouts(model)["1"].active == 1


def test_a_budget_too_small_is_an_error():
    with pytest.raises(InputError, match="the budget leaves a layer without a block"):
        prune(small_model(), 0.99)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_global_choice_is_the_greedy_one(data):
    counts = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=len(counts), max_size=len(counts)))
    seed = data.draw(st.integers(0, 2**20))
    density = data.draw(st.floats(0.05, 1))
    generator = torch.Generator().manual_seed(seed)
    scores = {i: torch.rand(n, generator=generator) for i, n in enumerate(counts)}
    weights = {i: n * s for i, (n, s) in enumerate(zip(counts, sizes))}
    budget = density * sum(weights.values()) + 1e-9
    if sum(sizes) > budget:
        with pytest.raises(InputError, match="leaves a layer without a block"):
            select_globally(scores, weights, density)
        return
    chosen = select_globally(scores, weights, density)
    spent = sum(int(mask.sum()) * sizes[i] for i, mask in chosen.items())
    absent = [sizes[i] for i, mask in chosen.items() if not mask.all()]
    assert spent <= budget
    assert all(spent + size > budget for size in absent)
    for i, mask in chosen.items():
        assert mask[scores[i].argmax()]
        # Within a layer all blocks have one size, so none stronger is left out.
        if not mask.all():
            assert scores[i][mask].min() >= scores[i][~mask].max()
