"""What defines Sup-tickets, KD tickets, lottery tickets, LTR and PF ensembles, in whole runs."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from sparse_engine.config.config import Config
from sparse_engine.config.values import read_config_file
from sparse_engine.data.catalog import TABLE
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.state_dict import load_state
from sparse_engine.layers.surgery import model_densities, model_density, used_layouts
from sparse_engine.methods import actions, pruning_actions
from sparse_engine.models.workload import dense_flops, forward_flops
from sparse_engine.runs.files import load_file
from sparse_engine.sparsity.pruning import strongest_layouts
from sparse_engine.sparsity.sparsify import dense_state_dict
from sparse_engine.train import main
from sparse_engine.training.network import build_network, dense_model
from sparse_engine.training.trainer import Trainer

FLAGS = ["--model", "mlp", "--batch-size", "256", "--device", "cpu"]
CPU = torch.device("cpu")
BLOCKS = pytest.mark.parametrize("block", ["1x1", "8x8"])


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Train with some flags into the folder `out`; return the JSON object."""

    def call(out, *arguments):
        main([*FLAGS, "--out", out, *arguments])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def watch(monkeypatch, kind):
    """Record the run, the dense weights before and after each call of an action's class."""
    seen, call = [], kind.__call__

    def record(self, run):
        before = weights_of(run.network.model) if hasattr(run, "network") else None
        call(self, run)
        seen.append((self, before, weights_of(run.network.model), masks_of(run.network.model)))

    monkeypatch.setattr(kind, "__call__", record)
    return seen


def weights_of(model):
    return {n: v.clone() for n, v in dense_state_dict(model).items()}


def masks_of(model):
    return {n: None if o is None else o.mask() for n, o in used_layouts(model).items()}


def config_of(out):
    return Config(**read_config_file(f"{out}/config.json"))


def ticket_models(out):
    config, found = config_of(out), []
    for path in sorted(Path(out).glob("member_*.pt")):
        model = dense_model(config, TABLE["digits"])
        load_state(model, load_file(path, "model")["model"])
        found.append(model)
    return found


def assert_on_blocks(model, weights):
    """Check that a model has the given dense weights on its blocks, and all else."""
    for name, value in weights_of(model).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, SparseLayer) and name.endswith("weight"):
            assert torch.equal(value, weights[name] * (value != 0))
            assert (value != 0).any()
        else:
            assert torch.equal(value, weights[name])


def assert_same_masks(first, second):
    assert first.keys() == second.keys()
    assert any(mask is not None for mask in first.values())
    for name, mask in first.items():
        other = second[name]
        assert mask is other is None or torch.equal(mask, other)


def assert_exact_budget(model, sparsity):
    layouts = [o for o in used_layouts(model).values() if o is not None]
    total = sum(p.numel() for n, p in dense_state_dict(model).items() if n.endswith("weight"))
    left = (1 - sparsity - model_density(model)) * total
    smallest = min(o.shape[0] * o.shape[1] / o.total for o in layouts)
    assert -1e-3 < left < smallest + 1e-3


@BLOCKS
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize(
    ("method", "flags", "tickets"),
    [
        ("sup-tickets", ["--cycles", "2"], 1),
        ("sup-tickets", ["--cycles", "2", "--topology", "granet"], 1),
        ("sup-tickets", ["--cycles", "2", "--topology", "snfs"], 1),
        ("lottery", ["--rounds", "2", "--rewind-point", "0.2"], 1),
        ("lottery", ["--rounds", "2", "--rewind-point", "0", "--rewind", "learning-rate"], 1),
        ("ltr", ["--rounds", "3", "--members", "2", "--rewind-point", "0.2"], 2),
        ("pf", ["--members", "2"], 2),
    ],
)
def test_tickets_meet_the_budget_exactly(method, flags, tickets, block, scope, run):
    flags = [*flags, "--sparsity", "0.6", "--prune-scope", scope, "--block", block]
    found = run("out", "--method", method, "--epochs", "12", *flags)
    models = ticket_models("out")
    assert len(models) == len(found["member_accuracy"]) == tickets
    for model in models:
        assert_exact_budget(model, 0.6)
    stored = sum(p.numel() for model in models for p in model.parameters())
    assert found["parameters"] == stored


@BLOCKS
@pytest.mark.parametrize(("averaging", "shares"), [("caa", [4]), ("cima", [8, 8, 4, 2])])
def test_sup_tickets_are_the_mean_of_the_cycles(averaging, shares, block, run, monkeypatch):
    """With fixed blocks nothing is pruned, so the mean is plain to see."""
    seen = watch(monkeypatch, actions.Average)
    flags = ["--topology", "static", "--averaging", averaging, "--block", block]
    run("out", "--method", "sup-tickets", "--epochs", "20", *flags)
    networks = [after for _, _, after, _ in seen]
    assert len(networks) == 4
    shares = [1 / share for share in shares * (4 // len(shares))]
    (ticket,) = map(weights_of, ticket_models("out"))
    for name, value in ticket.items():
        mean = sum(share * network[name] for share, network in zip(shares, networks))
        assert torch.allclose(value, mean, atol=1e-6), name
        assert not torch.equal(networks[0][name], networks[3][name])


@BLOCKS
def test_sup_tickets_average_the_union_and_keep_its_best_blocks(block, run, monkeypatch):
    seen = watch(monkeypatch, actions.Average)
    flags = ["--cycles", "1", "--block", block, "--sparsity", "0.7"]
    run("out", "--method", "sup-tickets", "--epochs", "20", *flags)
    (_, _, first, _), (_, _, second, _) = seen
    model = dense_model(config_of("out"), TABLE["digits"])
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    model.load_state_dict(mean)
    layouts = strongest_layouts(model, 0.7, config_of("out"))
    (ticket,) = ticket_models("out")
    for name, mask in masks_of(ticket).items():
        assert (layouts[name] is None) == (mask is None)
        if mask is not None:
            assert torch.equal(layouts[name].mask(), mask)
    assert_on_blocks(ticket, {n: torch.lerp(first[n], second[n], 0.5) for n in first})


def test_sup_tickets_train_on_from_the_ticket_and_change_blocks_between_cycles(run, monkeypatch):
    averages, escapes = watch(monkeypatch, actions.Average), watch(monkeypatch, actions.Escape)
    run("out", "--method", "sup-tickets", "--epochs", "20", "--block", "4x4")
    for _, before, after, _ in averages:
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(escapes) == 3
    # Blocks at the end of a cycle are those after the escape before it.
    for (_, _, _, escaped), (_, _, _, averaged) in zip(escapes, averages[1:]):
        assert all(torch.equal(escaped[n], averaged[n]) for n in escaped if escaped[n] is not None)
    for (_, _, _, one), (_, _, _, other) in pairwise(averages):
        assert any(not torch.equal(one[n], other[n]) for n in one if one[n] is not None)


@BLOCKS
@pytest.mark.parametrize("point", ["0", "0.2"])
def test_lottery_tickets_go_back_to_early_weights(block, point, run, monkeypatch):
    kept, seen = watch(monkeypatch, actions.SaveState), watch(monkeypatch, actions.Rewind)
    flags = ["--rounds", "2", "--rewind-point", point, "--block", block, "--sparsity", "0.6"]
    run("out", "--method", "lottery", "--epochs", "14", *flags)
    ((_, _, early, _),) = kept
    if point == "0":
        start = build_network(config_of("out"), TABLE["digits"], CPU, 0, 0.0).model
        assert all(torch.equal(early[n], value) for n, value in weights_of(start).items())
    assert len(seen) == 2
    for _, trained, after, masks in seen:
        changed = 0
        for name, value in after.items():
            mask = masks.get(name.removesuffix(".weight")) if name.endswith("weight") else None
            stays = value != 0 if mask is not None else torch.ones_like(value, dtype=torch.bool)
            assert torch.equal(value[stays], early[name][stays])
            changed += not torch.equal(value[stays], trained[name][stays])
        assert changed
    first, second = (masks for _, _, _, masks in seen)
    assert all(not (second[n] & ~first[n]).any() for n in second if first[n] is not None)


def test_learning_rate_rewinding_keeps_the_weights(run, monkeypatch):
    rewinds, prunings = (
        watch(monkeypatch, actions.Rewind),
        watch(monkeypatch, pruning_actions.Prune),
    )
    flags = ["--rounds", "1", "--rewind-point", "0.2", "--rewind", "learning-rate"]
    run("out", "--method", "lottery", "--epochs", "18", *flags, "--block", "8x8")
    assert not rewinds
    ((_, before, after, _),) = prunings
    assert all(torch.equal(after[n], before[n] * (after[n] != 0)) for n in after)
    rows = Path("out/metrics.csv").read_text().splitlines()[1:]
    rates = [float(row.split(",")[3]) for row in rows]
    # Ten epochs dense; the eight after the point once more.
    assert rates == pytest.approx([0.1] * 5 + [0.01] * 2 + [0.001] * 3 + rates[2:10], abs=1e-6)


def test_lottery_rounds_prune_equal_shares_and_may_all_be_tickets(run):
    flags = ["--rounds", "3", "--members", "3", "--sparsity", "0.488", "--block", "1x1"]
    run("out", "--method", "lottery", "--epochs", "12", *flags)
    found = [model_density(model) for model in ticket_models("out")]
    assert found == pytest.approx([0.8, 0.64, 0.512], abs=1e-4)


@BLOCKS
def test_ltr_members_are_one_ticket_trained_apart(block, run, monkeypatch):
    kept, starts = watch(monkeypatch, actions.SaveState), watch(monkeypatch, actions.StartFromState)
    prunings = watch(monkeypatch, pruning_actions.Prune)
    flags = ["--rounds", "3", "--members", "2", "--rewind-point", "0.2", "--block", block]
    run("out", "--method", "ltr", "--epochs", "14", "--sparsity", "0.6", *flags)
    (_, _, early, _), (_, _, ticket, _) = kept
    sparsities = [0.6 * (1 - (1 - i / 3) ** 3) for i in (1, 2, 3)]
    assert [action.sparsity for action, *_ in prunings] == pytest.approx(sparsities)
    for name, value in ticket.items():
        assert torch.equal(value, early[name] * ((value != 0) | ~torch.tensor("weight" in name)))
    for _, _, after, _ in starts:
        assert all(torch.equal(after[name], ticket[name]) for name in ticket)
    first, second = ticket_models("out")
    assert_same_masks(masks_of(first), masks_of(second))
    assert not torch.equal(first.hidden1.weight, second.hidden1.weight)


def test_pf_members_are_pruned_from_networks_of_their_own(run, monkeypatch):
    prunings = watch(monkeypatch, pruning_actions.Prune)
    run("out", "--method", "pf", "--members", "2", "--epochs", "12", "--block", "4x4")
    (_, one, _, first), (_, other, _, second) = prunings
    assert not torch.equal(one["hidden1.weight"], other["hidden1.weight"])
    for model, masks in zip(ticket_models("out"), (first, second)):
        assert_same_masks(masks_of(model), masks)
    assert not torch.equal(first["hidden1"], second["hidden1"])


@BLOCKS
@pytest.mark.parametrize("point", ["0", "0.2"])
def test_kd_tickets_are_cut_as_their_teacher_from_its_own_start(block, point, run, monkeypatch):
    epoch, early = int(float(point) * 10), []
    close = Trainer._close_epoch

    def remember(self, *arguments):
        early.append(weights_of(self.network.model))
        close(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_close_epoch", remember)
        run("teacher", "--method", "dense", "--epochs", "10", "--seed", "3")
    start = weights_of(build_network(config_of("teacher"), TABLE["digits"], CPU).model)
    found_cuts = watch(monkeypatch, pruning_actions.PruneLikeTeacher)
    flags = ["--teacher", "teacher", "--rewind-point", point, "--block", block, "--seed", "3"]
    found = run("out", "--method", "kd-ticket", "--epochs", "10", "--sparsity", "0.6", *flags)
    (teacher,) = ticket_models("teacher")
    layouts = strongest_layouts(teacher, 0.6, config_of("out"))
    ((_, _, after, masks),) = found_cuts
    origin = early[epoch - 1] if epoch else start
    for name, layout in layouts.items():
        assert (masks[name] is None) == (layout is None)
        assert layout is None or torch.equal(masks[name], layout.mask())
    for name, value in after.items():
        assert torch.equal(value, origin[name] * ((value != 0) | ("weight" not in name)))
    (ticket,) = ticket_models("out")
    assert_same_masks(masks_of(ticket), masks)
    assert_exact_budget(ticket, 0.6)
    # A dense start where there is one; then a step is three sparse passes and a dense one.
    share = float(point) + (1 - float(point)) * (found["test_flops_ratio"] + 1 / 3)
    assert found["train_flops_ratio"] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("lottery", ["--rounds", "2", "--rewind-point", "0.2"]),
        ("ltr", ["--rounds", "3", "--members", "2"]),
        ("pf", ["--members", "2"]),
    ],
)
def test_flops_are_those_of_the_densities_a_run_had(method, flags, run, monkeypatch):
    steps, train_step = [], Trainer._train_step

    def count(self, phase):
        steps.append(model_densities(self.network.model))
        train_step(self, phase)

    monkeypatch.setattr(Trainer, "_train_step", count)
    flags = ["--method", method, "--epochs", "20", "--block", "8x8", *flags]
    found = run("out", *flags)
    dense = dense_flops(dense_model(config_of("out"), TABLE["digits"]), (1, 8, 8))
    by_hand = sum(3 * forward_flops(dense, densities) for densities in steps) * 256
    assert found["train_flops"] == pytest.approx(by_hand)
    # Layer by layer the plan is known beforehand.
    layerwise = run("layers", *flags, "--prune-scope", "layer")
    planned = run("", *flags, "--prune-scope", "layer", "--dry-run")
    for name in ("train_flops", "test_flops_ratio", "parameters", "bytes"):
        assert layerwise[name] == planned[name]
