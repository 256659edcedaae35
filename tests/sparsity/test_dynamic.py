"""When updates happen and by how much, and DynamicSparsity in a user's own training loop."""

import copy
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparse_engine import DynamicSparsity, sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.sparsity.update_schedule import UpdateSchedule


def test_cosine_rates_by_hand():
    schedule = UpdateSchedule(interval=10, drop=0.3, stop=60)
    assert schedule.rate(10) == pytest.approx(0.15 * (1 + math.cos(math.pi / 6)))
    assert schedule.rate(20) == pytest.approx(0.225)
    assert schedule.rate(30) == pytest.approx(0.15)
    assert schedule.rate(50) == pytest.approx(0.15 * (1 - math.sqrt(3) / 2))
    assert [schedule.rate(step) for step in (1, 9, 11, 60, 61, 70)] == [0.0] * 6


def test_constant_rates():
    assert [UpdateSchedule(2, 0.5, 5, "constant").rate(n) for n in range(1, 8)] == [
        *(0, 0.5, 0, 0.5, 0, 0, 0)
    ]
    assert UpdateSchedule(7, 0.5, None, "constant").rate(70_000) == 0.5
    assert UpdateSchedule(7, 0.5, None, "cosine").rate(70_000) == 0.5


@given(
    st.integers(1, 30),
    st.one_of(st.none(), st.integers(0, 100)),
    st.sampled_from(["constant", "cosine"]),
    st.integers(0, 120),
)
def test_updates_in_equals_a_count(interval, stop, kind, steps):
    schedule = UpdateSchedule(interval, 0.3, stop, kind)
    rates = [schedule.rate(step) for step in range(1, steps + 1)]
    assert schedule.updates_in(steps) == sum(rate > 0 for rate in rates)
    assert all(0 <= rate <= 0.3 for rate in rates)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.3, 10), "interval must be at least 1 step, found 0"),
        ((10, 0.0, 10), "drop rate must be above 0 and at most 1, found 0.0"),
        ((10, 1.5, 10), "drop rate must be above 0 and at most 1, found 1.5"),
        ((10, math.nan, 10), "drop rate must be above 0 and at most 1, found nan"),
        ((10, 0.3, 10, "linear"), "unknown drop schedule 'linear'"),
    ],
)
def test_schedule_errors(arguments, message):
    with pytest.raises(InputError, match=message):
        UpdateSchedule(*arguments)


def setting(seed: int = 0, sparse: bool = True):
    """Return a model and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)
    )
    if sparse:
        sparsify(model, 0.7, "uniform", (4, 4), init="random")
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(model, optimizer, dynamic, steps, first=0):
    """Take some steps; return the losses, and the steps (from 1) after which blocks changed."""
    losses, updates = [], []
    for step in range(first + 1, first + steps + 1):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 2, 4, 4, generator=generator)
        labels = (x[:, 0].mean((1, 2)) > 0).long() + 2 * (x[:, 1].mean((1, 2)) > 0)
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        if dynamic.step():
            updates.append(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, updates


def block_ids(model) -> list[torch.Tensor]:
    return [m.layout.block_ids.clone() for m in model.modules() if isinstance(m, SparseLayer)]


def probes(model) -> list:
    return [m._probe for m in model.modules() if isinstance(m, SparseLayer)]


@pytest.mark.parametrize("rule", ["set", "rigl"])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_loop_trains_and_updates_until_stop(rule, schedule):
    model, optimizer = setting()
    dynamic = DynamicSparsity(
        model, optimizer, rule, interval=10, total_steps=80, schedule=schedule
    )
    losses, updates = train(model, optimizer, dynamic, 59)
    fixed = block_ids(model)
    more_losses, more_updates = train(model, optimizer, dynamic, 40, first=59)
    assert updates == [10, 20, 30, 40, 50]
    assert more_updates == []
    assert all(torch.equal(a, b) for a, b in zip(fixed, block_ids(model)))
    assert sum(more_losses[-10:]) < 0.9 * sum(losses[:10])
    assert 0.3 < dynamic.exploration_rate() < 1


def test_a_stop_above_one_is_a_step():
    model, optimizer = setting()
    dynamic = DynamicSparsity(model, optimizer, interval=4, stop=12)
    assert train(model, optimizer, dynamic, 20)[1] == [4, 8]


def test_layers_are_armed_before_updates_only():
    model, optimizer = setting()
    dynamic = DynamicSparsity(model, optimizer, "rigl", interval=3, stop=8)
    armed = []
    for step in range(12):
        armed.append([probe is not None for probe in probes(model)])
        train(model, optimizer, dynamic, 1, first=step)
    assert armed == [[step in (3, 6)] * 2 for step in range(1, 13)]


def test_random_growth_is_never_armed():
    model, optimizer = setting()
    dynamic = DynamicSparsity(model, optimizer, "set", interval=1, stop=None)
    assert train(model, optimizer, dynamic, 3)[1] == [1, 2, 3]
    assert probes(model) == [None, None]


def test_static_takes_a_dense_model_too():
    model, optimizer = setting(sparse=False)
    dynamic = DynamicSparsity(model, optimizer, "static", total_steps=4)
    train(model, optimizer, dynamic, 4)
    assert dynamic.exploration_rate() == 1


@pytest.mark.parametrize("rule", ["set", "rigl"])
@pytest.mark.parametrize("pause", [4, 5, 7])
def test_resume_equals_an_uninterrupted_run(rule, pause):
    def made(seed: int):
        model, optimizer = setting(seed)
        return model, optimizer, DynamicSparsity(model, optimizer, rule, 5, total_steps=20)

    run = made(0)
    train(*run, pause)
    saved = copy.deepcopy([part.state_dict() for part in run])
    train(*run, 12, first=pause)

    resumed = made(1)
    for part, state in zip(resumed, saved):
        part.load_state_dict(state)
    train(*resumed, 12, first=pause)
    for a, b in zip(run[0].state_dict().values(), resumed[0].state_dict().values()):
        assert torch.equal(a, b)
    assert run[2].exploration_rate() == resumed[2].exploration_rate()


def test_loading_an_earlier_state_takes_the_probes_away():
    model, optimizer = setting()
    dynamic = DynamicSparsity(model, optimizer, "rigl", interval=5)
    earlier = copy.deepcopy(dynamic.state_dict())
    train(model, optimizer, dynamic, 4)
    assert None not in probes(model)
    dynamic.load_state_dict(earlier)
    assert probes(model) == [None, None]


def test_without_total_steps_updates_go_on_at_a_constant_rate(caplog):
    model, optimizer = setting()
    with caplog.at_level(logging.INFO, logger="sparse_engine"):
        dynamic = DynamicSparsity(model, optimizer, rule="rigl", interval=100, drop=0.3, stop=0.75)
    assert "without total_steps" in caplog.text
    assert [dynamic.schedule.rate(n) for n in (99, 100, 1_000_000)] == [0, 0.3, 0.3]
    assert train(model, optimizer, dynamic, 100)[1] == [100]


@pytest.mark.parametrize("rule", ["set", "rigl"])
def test_a_compiled_model_trains_the_same(rule):
    def trained(compiled: bool):
        torch.compiler.reset()
        model, optimizer = setting()
        called = torch.compile(model, backend="aot_eager") if compiled else model
        dynamic = DynamicSparsity(called, optimizer, rule, interval=3, stop=8)
        return model, train(called, optimizer, dynamic, 8)

    (eager, expected), (compiled, found) = trained(False), trained(True)
    assert found[1] == [3, 6]
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(block_ids(eager), block_ids(compiled)))


def test_a_dense_model_is_an_error():
    with pytest.raises(InputError, match="call sparsify first"):
        DynamicSparsity(*setting(sparse=False))


def test_an_optimizer_from_before_sparsify_is_an_error():
    model, optimizer = setting(sparse=False)
    sparsify(model, 0.5, block=(4, 4))
    with pytest.raises(InputError, match="call sparsify first"):
        DynamicSparsity(model, optimizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "rigll"}, "unknown topology rule 'rigll'; did you mean 'rigl'"),
        ({"interval": 0}, "interval must be at least 1"),
        ({"drop": -0.1}, "drop rate must be above 0"),
        ({"stop": 0}, "stop must be above 0 and finite, or None, found 0"),
        ({"stop": math.nan}, "stop must be above 0 and finite, or None, found nan"),
        ({"schedule": "linear"}, "unknown drop schedule 'linear'"),
        ({"total_steps": 50}, "50 steps is too short for a topology update every 100"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(InputError, match=message):
        DynamicSparsity(*setting(), **arguments)
