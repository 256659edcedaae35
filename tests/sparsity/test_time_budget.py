"""Budgets of seconds, with invented times: what is best, what fits, what is out of reach."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from sparse_engine.errors import InputError
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.sparsity.distribution import (
    Sparsity,
    layer_densities,
    total_sparsity,
)
from sparse_engine.sparsity.time_budget import TimeCurve, score, time_ratio, timed_plans
from sparse_engine.training.times.budget import matching_sparsity

SHAPES = {
    "stem": (16, 3, 3, 3),
    "wide": (64, 48, 3, 3),
    "point": (128, 64, 1, 1),
    "deep": (128, 128, 3, 3),
    "head": (10, 128),
}


def full_plans(block, shapes=SHAPES, taps="each"):
    return [LayerPlan.full(name, shape, block, taps) for name, shape in shapes.items()]


def line(plan, slope, overhead=0.0):
    """Return the curve of a layer whose blocks take `slope` seconds each."""
    return TimeCurve(
        (plan.group, plan.total), (overhead + slope * plan.group, overhead + slope * plan.total)
    )


def convolution_times(full, seed=0):
    """Return curves that rise at first by more than in proportion, and are dearer than dense."""
    draw = np.random.default_rng(seed)
    curves = {}
    for plan in full:
        active = sorted({1, *(max(1, round(d * plan.total)) for d in (0.1, 0.3, 0.6))})
        active = [n for n in active if n < plan.total] + [plan.total]
        dense = draw.uniform(0.5, 2)
        rise = draw.uniform(1, 2)
        seconds = [dense * (0.03 + rise * n / plan.total) for n in active[:-1]] + [dense]
        curves[plan.name] = TimeCurve(tuple(active), tuple(seconds))
    return curves


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_where_time_counts_weights_it_is_erk(share):
    full = full_plans((1, 1))
    curves = {plan.name: line(plan, 1e-6) for plan in full}
    found = {p.name: p.density for p in timed_plans(full, curves, share)}
    expected = layer_densities(SHAPES, 1 - share, "erk")
    # In the largest layers the numbers to choose from lie up to a hundredth apart.
    assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_better_fits_but_for_one_step(seed):
    """Against every choice there is: what a price cannot split is one layer's step."""
    shapes = {"a": (16, 32), "b": (32, 16, 1, 3), "c": (48, 16)}
    full = full_plans((16, 8), shapes)
    curves = convolution_times(full, seed)
    dense = sum(curve.dense for curve in curves.values())
    share = 0.45 + 0.02 * seed
    found = timed_plans(full, curves, share)
    largest = max(curve.dense for curve in curves.values())
    every = [
        [replace(plan, active=n) for plan, n in zip(full, counts)]
        for counts in itertools.product(*(range(1, p.total + 1) for p in full))
    ]
    smaller = share - largest / dense
    best = max((score(p) for p in every if time_ratio(p, curves) <= smaller), default=0)
    assert score(found) >= best
    for plan in found:
        for n in range(plan.active + 1, plan.total + 1):
            more = [replace(p, active=n) if p is plan else p for p in found]
            assert time_ratio(more, curves) > share


@pytest.mark.parametrize("other", ["erk", "uniform"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_score_is_above_that_of_another_distribution_of_equal_time(other, share):
    full = full_plans((8, 8))
    curves = convolution_times(full)
    found = timed_plans(full, curves, share)
    sparsity, time = matching_sparsity(
        lambda s: Sparsity(s, other, (8, 8)).plans(SHAPES), lambda p: time_ratio(p, curves), share
    )
    assert share - 0.05 < time <= share
    assert share - 0.01 < time_ratio(found, curves) <= share + 1e-12
    assert score(found) > score(Sparsity(sparsity, other, (8, 8)).plans(SHAPES))


def test_a_layer_whose_blocks_are_slower_than_dense_runs_dense():
    full = full_plans((8, 8))
    curves = {plan.name: line(plan, 1 / plan.total) for plan in full}
    curves["wide"] = TimeCurve((1, 100, full[1].total), (1.2, 1.3, 1.0))
    found = {p.name: p for p in timed_plans(full, curves, 0.5)}
    assert found["wide"].is_dense
    assert not found["deep"].is_dense


def test_a_faster_layer_gets_more():
    full = full_plans((8, 8), {"a": (64, 64), "b": (64, 64)})
    curves = {"a": line(full[0], 1.0), "b": line(full[1], 4.0)}
    first, second = timed_plans(full, curves, 0.4)
    # Equal gains a second: 1 / density^2 in proportion to the price of a block.
    assert first.density / second.density == pytest.approx(2, rel=0.1)


def test_layers_that_take_no_time_are_dense_and_so_are_all_in_all_the_time():
    full = full_plans((8, 8))
    curves = {plan.name: line(plan, 1.0) for plan in full}
    curves["point"] = TimeCurve((1, full[2].total), (0.0, 0.0))
    assert timed_plans(full, curves, 0.1)[2].is_dense
    assert timed_plans(full, curves, 1.0) == full


@pytest.mark.parametrize(("taps", "size"), [("row", 3), ("all", 9)])
def test_taps_that_go_together_come_in_groups(taps, size):
    full = full_plans((8, 8), taps=taps)
    found = timed_plans(full, {plan.name: line(plan, 1.0, 5.0) for plan in full}, 0.3)
    assert all(plan.active % plan.group == 0 for plan in found)
    assert any(not plan.is_dense and plan.group == size for plan in found)


def test_a_budget_below_the_fewest_blocks_is_refused():
    full = full_plans((8, 8))
    curves = {plan.name: line(plan, 1.0, overhead=plan.total) for plan in full}
    with pytest.raises(InputError, match=r"time budget 0.4 is out of reach: .* still take 0.5"):
        timed_plans(full, curves, 0.4)


@pytest.mark.parametrize("taps", ["each", "row", "all"])
@pytest.mark.parametrize("block", [(1, 1), (8, 8), (32, 32)])
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_densities_and_their_sparsity_give_the_same_blocks_again(share, block, taps):
    full = full_plans(block, taps=taps)
    plans = timed_plans(full, {p.name: line(p, 1.0 + p.shape[0] / 50) for p in full}, share)
    densities = {plan.name: plan.density for plan in plans}
    assert Sparsity(total_sparsity(plans), densities, block, taps).plans(SHAPES) == plans


def test_other_sparsities_scale_the_densities():
    densities = {"stem": 1.0, "wide": 0.4, "point": 0.4, "deep": 0.1, "head": 1.0}
    found = layer_densities(SHAPES, 0.95, densities)
    assert found["wide"] == pytest.approx(4 * found["deep"])
    weights = {name: math.prod(shape) for name, shape in SHAPES.items()}
    kept = sum(found[name] * weights[name] for name in SHAPES)
    assert kept == pytest.approx(0.05 * sum(weights.values()))


@pytest.mark.parametrize(
    ("densities", "message"),
    [
        ({"stem": 0.5}, "of another network: layer 'deep' is not in both"),
        (dict.fromkeys(SHAPES, 0.0), "density of layer 'stem' must be above 0 and at most 1"),
        ({**dict.fromkeys(SHAPES, 0.5), "head": "1"}, "layer 'head' must be .* found '1'"),
    ],
)
def test_densities_that_do_not_fit_are_refused(densities, message):
    with pytest.raises(InputError, match=message):
        Sparsity(0.5, densities, (8, 8)).plans(SHAPES)


def test_the_matching_sparsity_is_the_lowest():
    flops = {name: 1 + index for index, name in enumerate(SHAPES)}

    def cost(plans):
        return sum(flops[p.name] * p.density for p in plans) / sum(flops.values())

    def plan(sparsity):
        return Sparsity(sparsity, "erk", (8, 8)).plans(SHAPES)

    sparsity, found = matching_sparsity(plan, cost, 0.4)
    assert found == cost(plan(sparsity)) <= 0.4 < cost(plan(sparsity - 1e-6))
    assert matching_sparsity(plan, cost, 1.0) == (0.0, 1.0)
    with pytest.raises(InputError, match=r"sparsity 0\.999 is out of reach"):
        matching_sparsity(plan, cost, 0.001)
