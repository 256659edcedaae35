"""How many blocks layers keep and get: by hand, and what holds for any layers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_engine.sparsity.layer_budgets import Budget, Exchange, gradual, redistributed, steady


def named(budgets):
    return {str(number): b for number, b in enumerate(budgets)}


@st.composite
def layers(draw, size=None):
    slots = draw(st.integers(1, 30))
    active = draw(st.integers(1, slots))
    return Budget(active, slots, draw(st.integers(1, active)), size or draw(st.floats(1, 50)))


def test_steady_keeps_every_count():
    budgets = named([Budget(10, 12, 10, 1.0), Budget(1, 1, 1, 1.0)])
    assert steady(budgets, 0.3) == {"0": Exchange(7, 10), "1": Exchange(1, 1)}
    assert steady(budgets, 1.0) == {"0": Exchange(0, 10), "1": Exchange(0, 1)}


def test_pruning_by_hand():
    budgets = named([Budget(100, 100, 20, 1.0)])
    assert gradual(budgets, 0.5, 0.0) == {"0": Exchange(50, 100)}
    assert gradual(budgets, 0.5, 0.875) == {"0": Exchange(15, 30)}
    assert gradual(budgets, 0.5, 1.0) == {"0": Exchange(10, 20)}
    # What is pruned stays pruned, in a phase that begins its schedule again.
    assert gradual(named([Budget(20, 100, 20, 1.0)]), 0.5, 0.1) == {"0": Exchange(10, 20)}


@given(st.lists(layers(), min_size=1, max_size=5), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_pruning_never_goes_below_the_final_count(drawn, rate, pruned):
    for name, swap in gradual(named(drawn), rate, pruned).items():
        budget = named(drawn)[name]
        assert min(budget.final, budget.active) <= swap.active <= budget.active
        assert 0 <= swap.kept <= swap.active


def test_redistribution_by_hand():
    budgets = named([Budget(10, 20, 10, 4.0), Budget(10, 20, 10, 4.0)])
    # Ten groups are dropped; the second layer contributes four times as much as the first.
    assert redistributed(budgets, 0.5, {"0": 1.0, "1": 4.0}) == {
        "0": Exchange(5, 7),
        "1": Exchange(5, 13),
    }


def test_what_a_full_layer_cannot_take_goes_to_the_others():
    budgets = named([Budget(10, 10, 10, 1.0), Budget(10, 40, 10, 1.0)])
    assert redistributed(budgets, 0.2, {"0": 5.0, "1": 0.0}) == {
        "0": Exchange(8, 10),
        "1": Exchange(8, 10),
    }
    assert redistributed(budgets, 0.2, {"0": 0.0, "1": 5.0}) == {
        "0": Exchange(8, 8),
        "1": Exchange(8, 12),
    }


def test_no_gradient_at_all_is_no_error():
    budgets = named([Budget(10, 20, 10, 1.0), Budget(10, 20, 10, 1.0)])
    assert redistributed(budgets, 0.5, {"0": 0.0, "1": 0.0}) == {n: Exchange(5, 10) for n in "01"}


@pytest.mark.parametrize("size", [1.0, None], ids=["equal", "any"])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_redistribution_keeps_the_budget(size, data):
    drawn = named(data.draw(st.lists(layers(size), min_size=1, max_size=6)))
    rate = data.draw(st.floats(0, 1))
    shares = {name: data.draw(st.floats(0, 1000)) for name in drawn}
    swaps = redistributed(drawn, rate, shares)
    before = sum(b.active * b.size for b in drawn.values())
    after = sum(swaps[n].active * b.size for n, b in drawn.items())
    assert after <= before * (1 + 1e-6)
    assert after > before - max(b.size for b in drawn.values())
    if size:
        assert after == pytest.approx(before)
    for name, swap in swaps.items():
        assert 1 <= swap.active <= drawn[name].slots
        assert 0 <= swap.kept <= swap.active
