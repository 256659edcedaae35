"""What defines Sup-tickets, in whole runs."""

from itertools import pairwise

import pytest
import torch
from finished_runs import config_of
from pruning import strongest
from watched_actions import BLOCKS, assert_on_blocks, masks_of, ticket_models, watch, weights_of

from sparse_engine.data.catalog import TABLE
from sparse_engine.methods import actions
from sparse_engine.training.network import dense_model

CPU = torch.device("cpu")


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
    layouts = strongest(model, 0.7, config_of("out"))
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
