"""Budgets and costs of pruned tickets in whole runs; what defines PF ensembles and KD tickets."""

import pytest
import torch
from finished_runs import config_of
from pruning import strongest
from watched_actions import (
    BLOCKS,
    assert_exact_budget,
    assert_same_masks,
    masks_of,
    ticket_models,
    watch,
    weights_of,
)

from sparse_engine.data.catalog import TABLE
from sparse_engine.layers.surgery import model_densities
from sparse_engine.methods import pruning_actions
from sparse_engine.models.workload import dense_flops, forward_flops
from sparse_engine.training.network import build_network, dense_model
from sparse_engine.training.trainer import Trainer

CPU = torch.device("cpu")


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
    result = run("out", "--method", method, "--epochs", "12", *flags)
    models = ticket_models("out")
    assert len(models) == len(result["member_accuracy"]) == tickets
    for model in models:
        assert_exact_budget(model, 0.6)
    stored = sum(p.numel() for model in models for p in model.parameters())
    assert result["parameters"] == stored


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
    result = run("out", "--method", "kd-ticket", "--epochs", "10", "--sparsity", "0.6", *flags)
    (teacher,) = ticket_models("teacher")
    layouts = strongest(teacher, 0.6, config_of("out"))
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
    share = float(point) + (1 - float(point)) * (result["test_flops_ratio"] + 1 / 3)
    # Of a dense run of 40 epochs, where these are 10.
    assert result["train_flops_ratio"] == pytest.approx(share / 4, abs=1e-6)


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
    result = run("out", *flags)
    dense = dense_flops(dense_model(config_of("out"), TABLE["digits"]), (1, 8, 8))
    by_hand = sum(3 * forward_flops(dense, densities) for densities in steps) * 256
    assert result["train_flops"] == pytest.approx(by_hand)
    # Layer by layer the plan is known beforehand.
    layerwise = run("layers", *flags, "--prune-scope", "layer")
    planned = run("", *flags, "--prune-scope", "layer", "--dry-run")
    for name in ("train_flops", "test_flops_ratio", "parameters", "bytes"):
        assert layerwise[name] == planned[name]
