"""Seconds of a training by those of its steps: sizes of steps, straight lines, updates."""

import pytest
import torch
from plan_rows import EDST, RIGL, row

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.layers.base import SparseLayer
from sparse_engine.methods.resolve import resolve
from sparse_engine.planning import seconds
from sparse_engine.planning.candidates import candidate
from sparse_engine.planning.seconds import plan_of, price
from sparse_engine.sparsity import layer_times
from sparse_engine.training.network import build_network

CPU, DIGITS = torch.device("cpu"), TABLE["digits"]
DENSE = resolve(Config(method="dense", model="wrn10-1", batch_size=64))


def planned(settings, epochs=250, **more):
    return plan_of(candidate(row(settings, epochs=epochs, **more), DENSE, 1437), DIGITS, CPU, 1437)


def test_a_training_is_steps_and_updates():
    plan = planned({**RIGL, "block": "8x8", "update_interval": 390})
    # 880 steps here, every 35 of which, up to three quarters of them, blocks change.
    assert (plan.steps, plan.updates, plan.rule, plan.drop) == (880, 18, "rigl", 0.3)
    priced = plan.priced(1.0, 3.0)
    assert priced.seconds == pytest.approx(862 + 3 * 18)
    assert priced.step == 1.0
    assert priced.epoch == pytest.approx(priced.seconds / 40)


def test_rare_updates_and_dense_networks_have_no_updates():
    assert planned({**RIGL, "block": "8x8", "update_interval": 2000}).rule is None
    assert (planned({"method": "dense"}).rule, planned({"method": "dense"}).updates) == (None, 0)
    assert planned({"method": "static", "block": "8x8", "sparsity": 0.5}).rule is None


def test_a_network_is_timed_with_the_densities_it_has():
    for settings, epochs in ((EDST, 450), ({**EDST, "method": "dst-ensemble"}, 750)):
        plan = planned({**settings, "block": "8x8"}, epochs)
        model = build_network(plan.network, DIGITS, CPU).model
        layers = [m for m in model.modules() if isinstance(m, SparseLayer)]
        assert layers
        assert plan.network.sparsity == pytest.approx(0.8, abs=0.02)
    plans = [planned({"method": "deep-ensemble", "members": 3}, 750), planned({"method": "dense"})]
    assert plans[0].key == plans[1].key == seconds._network_key(DENSE)
    model = build_network(plans[0].network, DIGITS, CPU).model
    assert not [m for m in model.modules() if isinstance(m, SparseLayer)]


def test_a_budget_of_time_is_settled_before(monkeypatch, capsys):
    def linear(plan, problem, module, counts, device, dtype):
        return [count / plan.total for count in counts]

    monkeypatch.setattr(layer_times, "measure", linear)
    timed = {"method": "rigl", "block": "4x4", "distribution": "timed", "time_budget": 0.5}
    plan = planned(timed)
    assert "timed: 0.5" in capsys.readouterr().out
    assert 0.3 < plan.network.sparsity < 0.8
    assert plan.candidate.config.distribution == "timed"


def test_sizes_of_steps():
    next_size = seconds._next_size
    assert next_size(4, 128, 32.0, is_first=True) == 128  # there is time for a batch
    assert next_size(4, 128, 0.1, is_first=True) == 16  # two sizes in any case
    assert next_size(8, 128, 0.1, is_first=False) == 32  # and an eighth of a batch
    assert next_size(16, 128, 3.9, is_first=False) == 16
    assert next_size(16, 128, 4.0, is_first=False) == 64
    assert next_size(64, 128, 1.0, is_first=False) == 64
    assert next_size(3, 5, 0.1, is_first=True) == 5


def test_a_batch_lies_on_the_line_through_two_sizes():
    assert seconds._growths([(4, [1.0]), (128, [7.0])], 128) == [1.0]
    growths = seconds._growths([(4, [1.4, 2.0]), (16, [2.6, 1.9])], 128)
    assert [2.6 * growths[0], 1.9 * growths[1]] == pytest.approx([1.0 + 0.1 * 128, 1.9])


def test_times_of_a_network_are_those_of_a_batch(monkeypatch):
    """With a clock by which a step takes a second, and a tenth more for each image."""
    made = []

    def random_step(network, config, info, images):
        made.append(images)
        return lambda: 1 + images / 10

    def in_turn(calls, rounds, on_gpu):
        return [[call()] * rounds for call in calls]

    monkeypatch.setattr(seconds, "random_step", random_step)
    monkeypatch.setattr(seconds, "updating_step", lambda network, step, drop: lambda: 3 * step())
    monkeypatch.setattr(seconds, "in_turn", in_turn)
    medians = lambda calls, rounds, on_gpu: [call() for call in calls]  # noqa: E731
    monkeypatch.setattr(seconds, "medians_in_turn", medians)
    plans = [planned({"method": "dense"}), planned({**RIGL, "block": "8x8"})]
    for limit, sizes in ((1e6, [2, 64]), (0.0, [2, 8])):
        made.clear()
        (dense, rigl), clock = price(plans, DENSE, DIGITS, CPU, limit)
        assert sorted({*made}) == sizes
        assert clock.images == sizes[-1]
        assert clock.dense == dense.step == rigl.step == pytest.approx(7.4)
        assert dense.seconds == pytest.approx(880 * 7.4)
        updates = plans[1].updates
        assert rigl.seconds == pytest.approx(7.4 * (880 + 2 * updates))


def test_a_large_budget_is_planned_longer():
    assert seconds.timing_seconds(60) == 25
    assert seconds.timing_seconds(5000) == 100
    assert seconds.timing_seconds(1e6) == 300
