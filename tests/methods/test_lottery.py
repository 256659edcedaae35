"""What defines lottery tickets and lottery-ticket-rewinding ensembles, in whole runs."""

from pathlib import Path

import pytest
import torch
from finished_runs import config_of
from watched_actions import BLOCKS, assert_same_masks, masks_of, ticket_models, watch, weights_of

from sparse_engine.data.catalog import TABLE
from sparse_engine.layers.surgery import model_density
from sparse_engine.methods import actions, pruning_actions
from sparse_engine.training.network import build_network

CPU = torch.device("cpu")


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
    run("out", "--method", "lottery", "--epochs", "18", *flags, "--block", "8x8", "--lr", "0.1")
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
    densities = [model_density(model) for model in ticket_models("out")]
    assert densities == pytest.approx([0.8, 0.64, 0.512], abs=1e-4)


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
