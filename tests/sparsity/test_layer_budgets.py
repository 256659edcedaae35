"""How many blocks layers keep and get: by hand, and what holds for any layers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_engine.sparsity.layer_budgets import Budget, Exchange, gradual, redistributed, steady
from sparse_kernels.block_kinds import BlockKinds


def layer(active, slots, final, size=1):
    """Return a layer of one kind of block, with `size` weights in each."""
    return Budget(BlockKinds.of((size * slots, 1), (size, 1)), (active,), slots, final)


def named(budgets):
    return {str(number): b for number, b in enumerate(budgets)}


@st.composite
def layers(draw, size=None):
    """Return layers whose blocks are of one size, or whose last ones are ragged."""
    if size:
        kinds = BlockKinds.of((size * draw(st.integers(1, 30)), 1), (size, 1))
    else:
        shape = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
        kinds = BlockKinds.of(shape, draw(st.tuples(st.integers(1, 7), st.integers(1, 7))))
    counts = tuple(draw(st.integers(0, most)) for most in kinds.groups)
    if not sum(counts) or draw(st.booleans()):
        counts = kinds.split(draw(st.integers(1, sum(kinds.groups))))
    slots = draw(st.integers(sum(counts), sum(kinds.groups)))
    return Budget(kinds, counts, slots, draw(st.integers(1, sum(counts))))


def check(budget, swap, rate):
    """Check that counts are in bounds, and that below rate 1 no layer or kind loses all blocks."""
    kinds = zip(swap.kept, swap.active, budget.counts, budget.kinds.groups, strict=True)
    for kept, active, before, most in kinds:
        assert 0 <= kept <= min(active, before) <= max(active, before) <= most
        if rate < 1 and before and active:
            assert kept
    assert rate == 1 or sum(swap.kept)


@given(st.lists(layers(), min_size=1, max_size=5), st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_a_layer_never_begins_again_from_zeros(drawn, rate):
    for name, swap in steady(named(drawn), rate).items():
        budget = named(drawn)[name]
        check(budget, swap, rate)
        assert swap.active == budget.counts
        wanted = int(rate * budget.active + 0.5)
        movable = budget.active - (rate < 1) * sum(n > 0 for n in budget.counts)
        assert budget.active - sum(swap.kept) == min(wanted, movable)


def test_steady_keeps_every_count():
    budgets = named([layer(10, 12, 10, 1), layer(1, 1, 1, 1)])
    assert steady(budgets, 0.3) == {"0": Exchange((7,), (10,)), "1": Exchange((1,), (1,))}
    assert steady(budgets, 1.0) == {"0": Exchange((0,), (10,)), "1": Exchange((0,), (1,))}


def test_pruning_by_hand():
    budgets = named([layer(100, 100, 20, 1)])
    assert gradual(budgets, 0.5, 0.0) == {"0": Exchange((50,), (100,))}
    assert gradual(budgets, 0.5, 0.875) == {"0": Exchange((15,), (30,))}
    assert gradual(budgets, 0.5, 1.0) == {"0": Exchange((10,), (20,))}
    # What is pruned stays pruned, in a phase that begins its schedule again.
    assert gradual(named([layer(20, 100, 20, 1)]), 0.5, 0.1) == {"0": Exchange((10,), (20,))}


@given(st.lists(layers(), min_size=1, max_size=5), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_pruning_never_goes_below_the_final_count(drawn, rate, pruned):
    for name, swap in gradual(named(drawn), rate, pruned).items():
        budget = named(drawn)[name]
        assert min(budget.final, budget.active) <= sum(swap.active) <= budget.active
        check(budget, swap, rate)


def test_redistribution_by_hand():
    budgets = named([layer(10, 20, 10, 4), layer(10, 20, 10, 4)])
    # Ten groups are dropped; the second layer contributes four times as much as the first.
    assert redistributed(budgets, 0.5, {"0": 1.0, "1": 4.0}) == {
        "0": Exchange((5,), (7,)),
        "1": Exchange((5,), (13,)),
    }


def test_what_a_full_layer_cannot_take_goes_to_the_others():
    budgets = named([layer(10, 10, 10, 1), layer(10, 40, 10, 1)])
    assert redistributed(budgets, 0.2, {"0": 5.0, "1": 0.0}) == {
        "0": Exchange((8,), (10,)),
        "1": Exchange((8,), (10,)),
    }
    assert redistributed(budgets, 0.2, {"0": 0.0, "1": 5.0}) == {
        "0": Exchange((8,), (8,)),
        "1": Exchange((8,), (12,)),
    }


def test_no_gradient_at_all_is_no_error():
    budgets = named([layer(10, 20, 10, 1), layer(10, 20, 10, 1)])
    assert redistributed(budgets, 0.5, {"0": 0.0, "1": 0.0}) == {
        n: Exchange((5,), (10,)) for n in "01"
    }


@pytest.mark.parametrize("size", [2, None], ids=["equal", "any"])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_redistribution_keeps_the_budget(size, data):
    drawn = named(data.draw(st.lists(layers(size), min_size=1, max_size=6)))
    rate = data.draw(st.floats(0, 1))
    shares = {name: data.draw(st.floats(0, 1000)) for name in drawn}
    swaps = redistributed(drawn, rate, shares)
    before = sum(b.weights for b in drawn.values())
    after = sum(b.kinds.weights_of(swaps[n].active) for n, b in drawn.items())
    assert before - max(max(b.kinds.weights) for b in drawn.values()) < after <= before
    if size:
        assert after == before
    for name, swap in swaps.items():
        assert 1 <= sum(swap.active) <= drawn[name].slots
        check(drawn[name], swap, rate)
