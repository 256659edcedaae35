"""Budgets in whole blocks: the promises of Sparsity.plans for any network, and known densities."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_engine.errors import InputError
from sparse_engine.sparsity.distribution import (
    DISTRIBUTIONS,
    Sparsity,
    layer_densities,
)
from sparse_engine.sparsity.erdos_renyi import ErdosRenyi

SIZES = st.sampled_from([1, 3, 10, 16, 40, 64, 100])
CONVOLUTION = st.tuples(SIZES, SIZES, st.sampled_from([1, 3]), st.sampled_from([1, 3]))
NETWORKS = st.lists(st.one_of(st.tuples(SIZES, SIZES), CONVOLUTION), min_size=1, max_size=8)
BLOCKS = st.sampled_from([(1, 1), (4, 8), (16, 16), (32, 32), "auto"])


def named(shapes):
    return {f"layer{i}": tuple(s) for i, s in enumerate(shapes)}


@given(NETWORKS, st.floats(0, 0.99), st.sampled_from(DISTRIBUTIONS), BLOCKS)
@settings(deadline=None, max_examples=200)
def test_the_budget_is_kept_and_used_up(shapes, sparsity, distribution, block):
    shapes = named(shapes)
    try:
        plans = Sparsity(sparsity, distribution, block).plans(shapes)
    except InputError:
        totals = Sparsity(0, distribution, block).plans(shapes)
        assert sum(p.kinds.weights_in(1) for p in totals) > (1 - sparsity) * weights(totals)
        return
    assert [p.name for p in plans] == list(shapes)
    assert all(1 <= p.active <= p.total for p in plans)
    left = (1 - sparsity) * weights(plans) - sum(p.density * p.weights for p in plans)
    not_full = [p for p in plans if not p.is_dense]
    open_sizes = [
        replace(p, active=p.active + 1).active_weights - p.active_weights for p in not_full
    ]
    tolerance = 1e-6 * min(p.weights / p.total for p in plans) + 1e-9 * weights(plans)
    assert left >= -tolerance
    assert left <= min(open_sizes, default=math.inf) + tolerance


def weights(plans):
    return sum(p.weights for p in plans)


@given(NETWORKS, st.floats(0, 0.99), st.sampled_from(DISTRIBUTIONS))
@settings(deadline=None, max_examples=100)
def test_densities_meet_the_budget_exactly(shapes, sparsity, distribution):
    shapes = named(shapes)
    densities = layer_densities(shapes, sparsity, distribution)
    kept = sum(densities[n] * math.prod(s) for n, s in shapes.items())
    assert kept == pytest.approx((1 - sparsity) * sum(math.prod(s) for s in shapes.values()))
    assert all(0 <= d <= 1 for d in densities.values())


@given(NETWORKS, st.floats(0.01, 0.99), st.sampled_from(["er", "erk"]))
@settings(deadline=None, max_examples=100)
def test_open_layers_share_one_scale_and_full_ones_are_above_it(shapes, sparsity, distribution):
    shapes = named(shapes)
    densities = layer_densities(shapes, sparsity, distribution)
    raw = {n: sum(s if distribution == "erk" else s[:2]) for n, s in shapes.items()}
    for n, s in shapes.items():
        raw[n] /= math.prod(s if distribution == "erk" else s[:2])
    scales = [densities[n] / raw[n] for n in shapes if densities[n] < 1 - 1e-9]
    for scale in scales:
        assert scale == pytest.approx(scales[0])
        assert all(scale * raw[n] >= 1 - 1e-6 for n in shapes if densities[n] == 1)


@given(NETWORKS, st.integers(0, 90), st.sampled_from(DISTRIBUTIONS))
@settings(deadline=None, max_examples=100)
def test_unstructured_counts_are_exact(shapes, percent, distribution):
    plans = Sparsity(percent / 100, distribution, (1, 1)).plans(named([*shapes, (100, 100)]))
    assert all(p.total == p.weights and p.stored == p.active for p in plans)
    assert sum(p.active for p in plans) == weights(plans) * (100 - percent) // 100


def test_uniform_gives_every_layer_the_same_density():
    shapes = {"a": (64, 64, 3, 3), "b": (128, 64), "c": (32, 128)}
    assert layer_densities(shapes, 0.75, "uniform") == {"a": 0.25, "b": 0.25, "c": 0.25}
    plans = Sparsity(0.75, "uniform", (32, 32)).plans(shapes)
    assert [(p.active, p.total) for p in plans] == [(9, 36), (2, 8), (1, 4)]


def test_erk_by_hand():
    # Raw densities 134 / 36864 and 74 / 640. At a tenth of 37504 weights their scale is
    # 3750.4 / 208 = 18.03 and the second layer would have 18.03 * 74 / 640 = 2.08: it is full.
    shapes = {"conv": (64, 64, 3, 3), "head": (10, 64)}
    found = layer_densities(shapes, 0.9, "erk")
    assert found == pytest.approx({"conv": (3750.4 - 640) / 36864, "head": 1.0})


def test_er_leaves_the_kernel_out():
    # Raw densities (16 + 16) / 256 and (16 + 64) / 1024 of 2304 and 1024 weights.
    shapes = {"conv": (16, 16, 3, 3), "linear": (16, 64)}
    scale = 0.2 * (2304 + 1024) / (2304 / 8 + 1024 * 80 / 1024)
    found = layer_densities(shapes, 0.8, "er")
    assert found == pytest.approx({"conv": scale / 8, "linear": scale * 80 / 1024})


def test_erk_counts_the_kernel():
    shapes = {"conv": (16, 16, 3, 3), "linear": (16, 64)}
    scale = 0.2 * (2304 + 1024) / ((16 + 16 + 3 + 3) + (16 + 64))
    found = layer_densities(shapes, 0.8, "erk")
    assert found == pytest.approx({"conv": scale * 38 / 2304, "linear": scale * 80 / 1024})


def test_a_power_of_erk_by_hand():
    # Raw densities 38 / 2304 and 80 / 1024, squared; neither layer is full.
    shapes = {"conv": (16, 16, 3, 3), "linear": (16, 64)}
    raw = {"conv": (38 / 2304) ** 2, "linear": (80 / 1024) ** 2}
    scale = 0.1 * (2304 + 1024) / (raw["conv"] * 2304 + raw["linear"] * 1024)
    found = layer_densities(shapes, 0.9, ErdosRenyi(power=2))
    assert found == pytest.approx({n: scale * r for n, r in raw.items()})


@pytest.mark.parametrize("kernel", [True, False])
def test_a_power_goes_from_uniform_over_the_papers_to_narrow_layers(kernel):
    shapes = {"wide": (256, 256, 3, 3), "narrow": (64, 64, 3, 3)}

    def ratio(distribution):
        found = layer_densities(shapes, 0.9, distribution)
        return found["narrow"] / found["wide"]

    assert ratio(ErdosRenyi(kernel, 0.0)) == pytest.approx(1)
    assert ratio(ErdosRenyi(kernel)) == ratio("erk" if kernel else "er")
    powers = [ratio(ErdosRenyi(kernel, power)) for power in (0.0, 0.5, 1.0, 1.5)]
    assert powers == sorted(powers)
    assert powers[-1] == pytest.approx(powers[2] ** 1.5)


def test_blocks_are_clamped_and_chosen_by_layer():
    shapes = {"stem": (16, 3, 3, 3), "body": (256, 192, 1, 1)}
    plans = Sparsity(0, "erk", "auto").plans(shapes)
    assert [(p.block, p.total) for p in plans] == [((16, 16), 9), ((128, 64), 6)]
    assert all(p.is_dense for p in plans)
    assert plans[0].stored == 9 * 256


@pytest.mark.parametrize("sparsity", [1, 1.5, -0.1, math.nan, math.inf])
def test_a_sparsity_out_of_range(sparsity):
    with pytest.raises(InputError, match=f"at least 0 and below 1, found {sparsity}"):
        Sparsity(sparsity, "erk", (4, 4)).plans({"a": (8, 8)})


def test_an_unknown_distribution_gets_the_nearest_name():
    with pytest.raises(InputError, match=r"'unifrm'; did you mean 'uniform'.*erk, er, uniform"):
        Sparsity(0.5, "unifrm", (4, 4)).plans({"a": (8, 8)})


def test_no_layer_at_all():
    with pytest.raises(InputError, match="no layer to make sparse"):
        Sparsity(0.5, "erk", (4, 4)).plans({})


def test_a_budget_that_leaves_a_layer_no_block():
    shapes = {"a": (32, 32), "b": (32, 32)}
    with pytest.raises(InputError, match=r"in each of 2 layers is already 1 of .* 0\.5 may stay"):
        Sparsity(0.5, "uniform", (32, 32)).plans(shapes)


@pytest.mark.parametrize("block", [(0, 4), (4,), "4", "0x4", "4x4x4", "-1x4", (4.0, 4)])
def test_a_block_that_is_no_block(block):
    with pytest.raises(InputError, match="positive"):
        Sparsity(0.5, "erk", block).plans({"a": (8, 8)})


def test_a_block_as_text():
    assert Sparsity(0, "erk", "16x32").plans({"a": (64, 64)})[0].block == (16, 32)
