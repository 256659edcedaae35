"""Finer blocks first: what stays at a re-cut, schedules that run on, costs, resuming, bad input."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_engine.checkpoint import load_file
from sparse_engine.coarsening import coarse_plans, coarsen
from sparse_engine.config import Config
from sparse_engine.cuts import Coarsen
from sparse_engine.data.catalog import dataset_info
from sparse_engine.errors import InputError
from sparse_engine.layer import SparseLayer
from sparse_engine.methods.fine_start import METHODS, stages
from sparse_engine.methods.registry import build_phases
from sparse_engine.network import build_network, dense_model, plan_network
from sparse_engine.recipes import resolve
from sparse_engine.recut import weight_parameter
from sparse_engine.regroup import find_order
from sparse_engine.train import main
from sparse_engine.trainer import Trainer
from sparse_engine.update_schedule import UpdateSchedule
from sparse_kernels.reference import block_norms, scatter_blocks

FLAGS = ["--model", "mlp", "--block", "16x16", "--batch-size", "256", "--device", "cpu"]
FINE = ["--start-block", "4x4", "--coarsen-at", "0.2,0.5"]
INFO = dataset_info("digits", None)


def config_for(**settings):
    given = {"dataset": "digits", "model": "wrn10-1", "block": "8x16", "start_block": "4x4"}
    return resolve(Config(**{**given, "method": "rigl", **settings}))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_blocks_go_straight_to_the_last_or_double_evenly():
    assert stages(config_for()) == ["4x4", "8x16"]
    assert stages(config_for(start_block="1x1", block="24x8")) == ["1x1", "24x8"]
    assert stages(config_for(start_block="8x32", block="auto")) == ["8x32", "auto"]
    assert stages(config_for(block="32x32", coarsen_at="0.1,0.2,0.3")) == [
        *("4x4", "8x8", "16x16", "32x32"),
    ]
    assert stages(config_for(block="32x32", coarsen_at="0.1,0.2")) == ["4x4", "16x16", "32x32"]
    assert stages(config_for(block="16x4", coarsen_at="0.1,0.2")) == ["4x4", "8x4", "16x4"]


@given(
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(0, 90)),
    st.sampled_from(["cosine", "constant"]),
    st.integers(0, 100),
)
def test_a_schedule_goes_on_where_it_was(interval, stop, kind, skip):
    whole = UpdateSchedule(interval, 0.5, stop, kind)
    rest = replace(whole, skip=skip)
    steps = range(1, 40)
    assert [rest.rate(n) for n in steps] == [whole.rate(skip + n) for n in steps]
    assert rest.updates_in(39) == sum(rest.rate(n) > 0 for n in steps)
    assert rest.pruned_share(5) == whole.pruned_share(skip + 5)
    assert whole.steps_before_stop(skip) + rest.steps_before_stop(9) == whole.steps_before_stop(
        skip + 9
    )


def made(phases):
    """Return the learning rate and the rate of the update of every step."""
    found = []
    for phase in phases:
        schedule = phase.update_schedule()
        for step in range(phase.steps):
            rate = schedule.rate(step + 1) if schedule else 0.0
            found.append((phase.learning_rate.at(step, phase.steps), rate))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_rates_and_updates_are_those_of_a_run_that_is_not_cut(method):
    config = config_for(method=method, coarsen_at="0.1,0.33")
    usual = build_phases(replace(config, start_block=None), 2000, 0.01)
    found = build_phases(config, 2000, 0.01)
    assert made(found) == made(usual)
    cuts = [action for phase in found for action in phase.end if isinstance(action, Coarsen)]
    members = 3 if method == "dst-ensemble" else 1
    assert [cut.block for cut in cuts] == ["4x8", "8x16"] * members
    assert sum(phase.tickets for phase in found) == sum(phase.tickets for phase in usual)
    assert found[0].steps / found[1].steps == pytest.approx(0.1 / 0.23, rel=0.05)


@pytest.mark.parametrize("taps", ["each", "all"])
@pytest.mark.parametrize("named", [None, {"classifier": "2x2", "stem": "dense"}])
def test_the_strongest_blocks_stay_with_their_weights_and_momenta(taps, named):
    config = config_for(taps=taps, layer_blocks=named, sparsity=0.7, distribution="uniform")
    network = build_network(config, INFO, torch.device("cpu"))
    fine = dict(network.model.named_modules())
    state = network.optimizer.state
    for values in state.values():
        values["momentum_buffer"].normal_()
    moved = {p: dict(values) for p, values in state.items()}
    plans = coarse_plans(network.model, config)
    assert plans == plan_network(config, dense_model(config, INFO))
    layers = coarsen(network.model, plans)
    network.replace_layers(layers)
    for plan in plans:
        new, old = network.model.get_submodule(plan.name), fine[plan.name]
        if plan.name in (named or {}):
            assert new is old
        if not isinstance(new, SparseLayer) or new is old:
            continue
        assert (new.block, new.layout.active, new.taps) == (plan.block, plan.active, taps)
        mask = scatter_blocks(
            torch.ones_like(new.values), new.layout.tensors(), new.layout.sizes()
        ).view(plan.shape)
        before = old.dense_weight() if isinstance(old, SparseLayer) else old.weight
        assert torch.equal(new.dense_weight(), before * mask)
        norms = block_norms(before.detach().reshape(new.layout.shape), new.layout.sizes())
        norms, stays = norms.view(-1, plan.group).sum(1), new.layout.mask().view(-1, plan.group)
        assert norms[stays[:, 0]].min() >= norms[~stays[:, 0]].max()
        momentum = dense(new, state[weight_parameter(new)]["momentum_buffer"])
        assert torch.equal(
            momentum, dense(old, moved[weight_parameter(old)]["momentum_buffer"]) * mask
        )
        assert torch.equal(network.topology.ever_active[plan.name].view(-1, plan.group), stays)


def dense(layer, values):
    if isinstance(layer, SparseLayer):
        values = scatter_blocks(values, layer.layout.tensors(), layer.layout.sizes())
    return values.view(layer._weight_shape() if isinstance(layer, SparseLayer) else values.shape)


def train(*flags):
    main([*FLAGS, *FINE, *flags])


def line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("flags", "phase"),
    [
        (["--method", "rigl", "--layer-blocks", '{"classifier": "1x1"}'], "rigl"),
        (["--method", "edst", "--members", "2"], "explore"),
        (["--method", "dst-ensemble", "--members", "2", "--topology", "set"], "member 1"),
    ],
)
def test_a_run_ends_with_its_blocks_and_costs_what_was_planned(flags, phase, capsys):
    train(*flags, "--epochs", "12", "--dry-run")
    planned = line(capsys)
    train(*flags, "--epochs", "12", "--out", "out")
    found = line(capsys)
    names = ("train_flops", "test_flops_ratio", "parameters")
    assert {n: found[n] for n in names} == pytest.approx({n: planned[n] for n in names})
    for path in Path("out").glob("member_*.pt"):
        assert load_file(path, "model")["model"]["hidden1.values"].shape[1:] == (16, 16)
    with Path("out", "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    seen = list(dict.fromkeys(row["phase"] for row in rows))
    assert seen[:3] == [f"{phase} 4x4", f"{phase} 8x8", phase]


def test_densities_that_scores_have_chosen_stay():
    config = config_for(start="snip", distribution="uniform", block="8x8")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 1, 8, 8, generator=generator)
    labels = torch.randint(10, (32,), generator=generator)
    network = build_network(config, INFO, torch.device("cpu"), batches=[(images, labels)])
    (before,) = network.densities()
    network.replace_layers(coarsen(network.model, coarse_plans(network.model, config)))
    for name, density in network.densities()[0].items():
        total = network.model.get_submodule(name).layout.total
        assert density == pytest.approx(before.get(name, 1.0), abs=1.5 / total)


class Killed(Exception):
    """Stands for whatever ends a process."""


def whole_and_resumed(step, monkeypatch, *flags):
    """Train into `whole`, and into `out` with a kill at a step; return the tickets' states."""
    train(*flags, "--out", "whole")
    save = Trainer._save_checkpoint

    def save_and_die(self):
        save(self)
        if self.progress.step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            train(*flags, "--out", "out", "--checkpoint-every", "1")
    main(["--resume", "out"])
    return [load_file(Path(f, "member_1.pt"), "model")["model"] for f in ("whole", "out")]


@pytest.mark.parametrize("step", [4, 5, 10, 13])
def test_a_run_resumed_across_a_cut_equals_one_that_was_not_cut_off(step, monkeypatch):
    flags = ["--method", "rigl", "--epochs", "4", "--sparsity", "0.6", "--update-interval", "3"]
    one, other = whole_and_resumed(step, monkeypatch, *flags)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = (load_file(Path(f, "last.pt"), "topology")["topology"] for f in ("whole", "out"))
    assert one["updates"] == other["updates"] > 0
    assert all(torch.equal(m, other["ever_active"][n]) for n, m in one["ever_active"].items())


@pytest.mark.parametrize("fuse", ["off", "on"])
def test_regrouping_at_a_cut_keeps_more_and_leaves_the_function(fuse):
    config = config_for(regroup=True, start_block="1x1", block="8x8", fuse=fuse, sparsity=0.7)
    network = build_network(replace(config, block="1x1"), INFO, torch.device("cpu"))
    with torch.no_grad():
        for layer in network.topology.layers.values():
            layer.values.copy_(layer.values**3)  # a few strong ones
    network.optimizer.step()
    before = {n: m.values.detach().abs().sum() for n, m in network.topology.layers.items()}
    images = torch.randn(8, 1, 8, 8)
    expected = network.model.eval()(images)
    plans = {p.name: None if p.is_dense else p for p in coarse_plans(network.model, config)}
    found = find_order(network.model, plans)
    network.topology.forget(found.order.layers)
    found.order.apply_(network.model, network.optimizer)
    assert torch.allclose(network.model(images), expected, atol=1e-4)
    network.replace_layers(coarsen(network.model, coarse_plans(network.model, config)))
    after = {n: m.values.detach().abs().sum() for n, m in network.topology.layers.items()}
    shares = {name: float(after[name] / before[name]) for name in before}
    assert shares == pytest.approx({n: found.after[n] for n in shares}, abs=1e-3)
    assert sum(found.after.values()) > 1.02 * sum(found.before.values())
    assert network.topology.exploration_rate() < 0.5


@pytest.mark.parametrize("rest", [[], ["--parallel", "data", "--fuse", "on"]])
def test_a_regrouped_run_resumes_across_its_cut(rest, monkeypatch):
    flags = ["--method", "rigl", "--epochs", "4", "--sparsity", "0.6", "--regroup", *rest]
    one, other = whole_and_resumed(5, monkeypatch, *flags)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_block": None, "coarsen_at": "0.5"}, "--coarsen-at needs --start-block"),
        ({"start_block": "8x"}, "block must be BOxBC with positive sizes"),
        ({"start_block": "auto"}, "--start-block auto is no size"),
        ({"start_block": "8x16"}, "--start-block 8x16 should be finer than --block 8x16"),
        ({"start_block": "16x4"}, "should be finer than --block 8x16 and divide it"),
        ({"start_block": "3x4"}, "should be finer .* and divide it"),
        ({"start_block": "64x64", "block": "auto"}, "finer than --block auto and divide it"),
        ({"block": "auto", "coarsen_at": "0.1,0.2"}, "--block auto is no size to count"),
        ({"coarsen_at": "0.1,0.2,0.3"}, "0.1,0.2,0.3 has 3 shares: .* as many doublings or more"),
        ({"block": "12x12", "coarsen_at": "0.1,0.2"}, "as many doublings"),
        ({"coarsen_at": "0"}, "rising shares between 0 and 1, .* found '0'"),
        ({"coarsen_at": "0.5,0.2"}, "rising shares"),
        ({"coarsen_at": "1"}, "rising shares"),
        ({"coarsen_at": "nan"}, "rising shares"),
        ({"coarsen_at": "soon"}, "rising shares"),
        ({"coarsen_at": "0.1,"}, "rising shares"),
        ({"method": "granet"}, "--start-block is for methods .*; found granet"),
        ({"method": "edst", "topology": "snfs"}, "found topology 'snfs'"),
        ({"method": "lottery"}, "found lottery"),
        ({"method": "dense"}, "found dense"),
        ({"method": "snapshot", "sparsity": 0.5, "members": 2}, "found snapshot"),
        ({"method": "static", "sparsity": 0.0}, "sparsity 0 has no blocks: leave --start-block"),
        ({"layer_blocks": {"*": "8x8"}}, "--layer-blocks names all layers: leave --start-block"),
        ({"method": "dst-ensemble", "parallel": "members"}, "leave --start-block out"),
    ],
)
def test_what_cannot_start_fine(settings, message):
    with pytest.raises(InputError, match=message):
        config_for(**settings)


def test_a_run_too_short_to_be_cut():
    with pytest.raises(InputError, match="4 steps are too few for 3 phases"):
        build_phases(config_for(method="static", coarsen_at="0.01,0.02"), 4)
