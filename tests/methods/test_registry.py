"""Every method's list of phases."""

from dataclasses import replace

import pytest
from method_phases import config_for, phases_for

from sparse_engine.errors import InputError
from sparse_engine.methods.actions import Average, Escape, SaveTicket, StartMember
from sparse_engine.methods.learning_rate import LearningRate
from sparse_engine.methods.phase import (
    LEAST_UPDATES,
    Phase,
    TopologyRule,
)
from sparse_engine.methods.registry import METHODS, build_phases
from sparse_engine.methods.resolve import warmup_share

CIFAR_EPOCH = 352
PAPER = {"block": "1x1", "restart": 0.1, "drop": 0.5, "drop_schedule": "constant"}


def test_edst_interval_does_not_depend_on_the_number_of_tickets():
    phases = phases_for(850 * CIFAR_EPOCH, method="edst", members=7)
    assert {phase.topology.interval for phase in phases} == {1000}


def test_edst_is_the_papers():
    phases = phases_for(450 * CIFAR_EPOCH, method="edst", members=3, **PAPER)
    assert [phase.steps / CIFAR_EPOCH for phase in phases] == [150, 100, 100, 100]
    assert [phase.name for phase in phases] == ["explore", "refine 1", "refine 2", "refine 3"]
    assert [phase.begin for phase in phases] == [(StartMember(0.8),), (), (), ()]
    ticket, escape = (SaveTicket(),), (SaveTicket(), Escape(0.8))
    assert [phase.end for phase in phases] == [(), escape, escape, ticket]
    explore, *refinements = phases
    assert explore.topology == TopologyRule("rigl", 1000, 0.5, "constant", None)
    assert {phase.topology for phase in refinements} == {replace(explore.topology, stop=0.75)}


def test_edst_learning_rates_at_the_right_steps():
    explore, refine, *_ = phases_for(450 * CIFAR_EPOCH, method="edst", **PAPER)
    lr = config_for(method="edst").lr
    half, last = 50 * CIFAR_EPOCH, 100 * CIFAR_EPOCH - 1
    assert {lr * explore.learning_rate.at(n, explore.steps) for n in (0, explore.steps - 1)} == {
        0.1
    }
    rates = [lr * refine.learning_rate.at(n, refine.steps) for n in (0, half - 1, half, last)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    ("settings", "drop", "schedule"),
    [
        ({"block": "1x1"}, 0.3, "cosine"),
        ({"block": "16x16"}, 0.3, "cosine"),
        ({"block": "16x16", "drop": 0.6, "drop_schedule": "constant"}, 0.6, "constant"),
        ({"block": "16x16", "dataset": "imagenet"}, 0.5, "cosine"),
    ],
)
def test_updates_of_edst_replace_fewer_blocks_than_the_papers(settings, drop, schedule):
    rules = {phase.topology for phase in phases_for(450_000, method="edst", **settings)}
    assert {(rule.drop, rule.schedule) for rule in rules} == {(drop, schedule)}


def refinement_rates(**settings):
    """The learning rates of each refinement: (share of it, rate), of all its 1000 steps."""
    *_, before, last = phases_for(4500, method="edst", **settings)
    assert before.learning_rate == last.learning_rate
    rates = [last.learning_rate.at(n, last.steps) for n in range(last.steps)]
    changes = [n for n in range(last.steps) if n == 0 or rates[n] != rates[n - 1]]
    return [(round(n / last.steps, 2), pytest.approx(rates[n])) for n in changes]


@pytest.mark.parametrize("block", ["1x1", "16x16"])
def test_refinements_begin_at_the_high_rate_again(block):
    assert refinement_rates(block=block) == [(0, 1), (0.33, 0.1), (0.67, 0.01)]
    papers = [(0, 0.1), (0.5, 0.01)]
    assert refinement_rates(block=block, restart=0.1) == papers
    assert refinement_rates(block=block, dataset="imagenet")[0] == (0, 0.1)


@pytest.mark.parametrize(
    ("restart", "rates"),
    [
        (0.5, [(0, 0.5), (0.33, 0.05), (0.67, 0.005)]),
        (0.05, [(0, 0.05), (0.5, 0.005)]),
        (0.01, [(0, 0.01)]),
        (0.001, [(0, 0.001)]),
    ],
)
def test_a_refinement_falls_tenfold_until_a_hundredth(restart, rates):
    assert refinement_rates(block="1x1", restart=restart) == rates


def test_edst_on_imagenet():
    epoch = 10_009
    config = config_for(method="edst", dataset="imagenet")
    assert (config.members, config.epochs) == (2, 170)
    explore, refine, _ = build_phases(config, 170 * epoch, warmup_share(config))
    assert (explore.steps, refine.steps) == (30 * epoch, 70 * epoch)
    assert explore.learning_rate.at(0, explore.steps) < 1e-4
    assert explore.learning_rate.at(5 * epoch - 1, explore.steps) < 1
    assert explore.learning_rate.at(5 * epoch, explore.steps) == 1
    steps = [n * epoch + d for n in (30, 60) for d in (-1, 0)]
    rates = [refine.learning_rate.at(n, refine.steps) for n in (0, *steps)]
    assert rates == [0.1, 0.1, 0.01, 0.01, 0.001]


@pytest.mark.parametrize("method", ["edst", "dst-ensemble"])
@pytest.mark.parametrize(
    ("settings", "stop"),
    [({}, 0.75), ({"select": "validation"}, None), ({"select": "validation", "stop": 0.4}, 0.4)],
)
def test_a_ticket_is_not_taken_right_after_an_update(method, settings, stop):
    tickets = [p for p in phases_for(30_000, method=method, **settings) if p.tickets]
    assert len(tickets) == 3
    assert {phase.topology.stop for phase in tickets} == {stop}


@pytest.mark.parametrize("method", ["set", "rigl", "dst-ensemble", "edst"])
def test_no_update_falls_on_the_end_of_a_phase(method):
    for phase in phases_for(10_000, method=method, update_interval=1, stop=1.0):
        schedule = phase.update_schedule()
        assert schedule.rate(phase.steps - 1) > 0
        assert schedule.rate(phase.steps) == 0


def test_dst_ensemble_phases_are_fresh_runs():
    epochs = config_for(method="dst-ensemble").epochs
    phases = phases_for(epochs * CIFAR_EPOCH, method="dst-ensemble")
    assert epochs == 750
    assert [phase.steps for phase in phases] == [250 * CIFAR_EPOCH] * 3
    assert {(phase.begin, phase.end) for phase in phases} == {
        ((StartMember(0.8),), (SaveTicket(),))
    }
    assert {phase.topology for phase in phases} == {
        TopologyRule("rigl", 1000, 0.5, "constant", 0.75)
    }
    edges = (0, 125 * CIFAR_EPOCH, 187 * CIFAR_EPOCH, 188 * CIFAR_EPOCH)
    rate = phases[0].learning_rate
    assert [rate.at(step, phases[0].steps) for step in edges] == [1, 0.1, 0.1, 0.01]


def test_the_warm_up_of_every_member_is_as_long():
    config = config_for(method="dst-ensemble", dataset="imagenet")
    phases = build_phases(config, 400 * 100, warmup_share(config))
    for phase in phases:
        assert phase.learning_rate.at(499, phase.steps) < 1
        assert phase.learning_rate.at(500, phase.steps) == 1


def test_rigl_is_the_papers():
    (phase,) = phases_for(97_656, method="rigl")
    assert phase.topology == TopologyRule("rigl", 100, 0.3, "cosine", 0.75)
    assert (phase.begin, phase.end) == ((StartMember(0.8),), (SaveTicket(),))
    schedule = phase.update_schedule()
    assert schedule.stop == 73_242
    assert schedule.rate(100) == pytest.approx(0.3, abs=1e-5)
    assert schedule.rate(36_600) == pytest.approx(0.15, abs=2e-4)
    assert schedule.rate(73_300) == 0


def test_set_differs_from_rigl_by_its_rule_only():
    (of_set,), (rigl,) = phases_for(5000, method="set"), phases_for(5000, method="rigl")
    assert of_set.topology == replace(rigl.topology, rule="set")


@pytest.mark.parametrize("method", ["dense", "static"])
def test_fixed_methods_have_no_updates(method):
    assert phases_for(100, method=method) == [
        Phase(
            name=method,
            steps=100,
            learning_rate=LearningRate(((0.0, 1.0), (0.5, 0.1), (0.75, 0.01))),
            begin=(StartMember(0.0 if method == "dense" else 0.8),),
            end=(SaveTicket(),),
        )
    ]


@pytest.mark.parametrize("method", ["dst-ensemble", "edst"])
def test_static_ensembles_have_no_updates(method):
    phases = phases_for(1000, method=method, topology="static")
    assert all(phase.topology is None and phase.update_schedule() is None for phase in phases)


@pytest.mark.parametrize("method", METHODS)
def test_steps_add_up(method):
    assert sum(phase.steps for phase in phases_for(12_345, method=method)) == 12_345


@pytest.mark.parametrize("method", ["set", "rigl", "dst-ensemble", "edst"])
def test_flags_reach_every_rule(method):
    flags = {"update_interval": 17, "drop": 0.2, "drop_schedule": "cosine", "stop": 0.5}
    rules = [p.topology for p in phases_for(9000, method=method, **flags)]
    assert {(r.interval, r.drop, r.schedule) for r in rules} == {(17, 0.2, "cosine")}
    assert rules[-1].stop == 0.5


def test_escape_and_members_of_edst():
    phases = phases_for(9000, method="edst", members=2, escape=0.5)
    assert [phase.ends_with_gradient for phase in phases] == [False, True, False]
    assert phases[1].end == (SaveTicket(), Escape(0.5))


@pytest.mark.parametrize("method", ["set", "rigl", "dst-ensemble", "edst"])
def test_too_short_for_one_update_is_an_error(method):
    with pytest.raises(InputError, match="too short for a topology update every 5000"):
        phases_for(6000, method=method, update_interval=5000)
    (last, *_) = reversed(phases_for(100, method=method))
    assert last.update_schedule().updates_in(last.steps) >= LEAST_UPDATES


def test_the_shortest_dynamic_run():
    assert phases_for(3, method="rigl")[0].update_schedule().updates_in(3) == 2
    with pytest.raises(InputError, match="phase 'rigl' of 1 steps is too short"):
        phases_for(1, method="rigl")


def test_sup_tickets_are_the_papers():
    """24 of 250 epochs in three cycles, a triangle each; one prune-and-grow before each cycle."""
    sparse, *cycles = phases_for(250 * CIFAR_EPOCH, method="sup-tickets", topology="set")
    assert [phase.steps / CIFAR_EPOCH for phase in (sparse, *cycles)] == [226, 8, 8, 8]
    assert sparse.topology.drop == 0.5
    assert sparse.topology.schedule == "constant"
    assert all(phase.topology is None for phase in cycles)
    average, escape = Average("average", "caa", 0.8), Escape(0.5)
    ends = [(average, escape)] * 3 + [(average, SaveTicket("average"))]
    assert [phase.end for phase in (sparse, *cycles)] == ends
    steps, lr = cycles[0].steps, config_for(method="sup-tickets").lr
    rates = [lr * cycles[0].learning_rate.at(n, steps) for n in (0, steps // 2, steps - 1)]
    assert rates == pytest.approx([0.001, 0.005, 0.001], rel=1e-3)
    assert sparse.learning_rate.at(113 * CIFAR_EPOCH, sparse.steps) == 0.1


def test_sup_tickets_on_imagenet():
    settings = {"method": "sup-tickets", "dataset": "imagenet", "epochs": 100}
    phases = build_phases(config_for(**settings), 100 * 1000)
    assert [phase.steps // 1000 for phase in phases] == [92, 2, 2, 2, 2]
    rates = [phases[0].learning_rate.at(n * 1000, 92_000) for n in (29, 30, 60, 85)]
    assert rates == [1, 0.1, 0.01, 0.001]


def test_intervals_scale_with_the_run():
    whole = phases_for(450 * CIFAR_EPOCH, method="edst")
    tenth = phases_for(45 * CIFAR_EPOCH, method="edst")
    assert [p.steps for p in tenth] == [p.steps // 10 for p in whole]
    assert {p.topology.interval for p in tenth} == {100}
