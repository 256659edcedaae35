"""Each action does to a run what it says, and nothing else."""

import copy
import inspect

import pytest
import torch
from fake_run import FakeRun
from pruning import strongest
from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.data.load import load_dataset
from sparse_engine.layers.surgery import change_layouts, model_density, replace_modules
from sparse_engine.methods import actions, pruning_actions
from sparse_engine.methods.actions import (
    Action,
    Average,
    Escape,
    Rewind,
    SaveState,
    SaveTicket,
    StartFromState,
    StartMember,
)
from sparse_engine.methods.pruning_actions import PermuteChannels, Prune, PruneLikeTeacher
from sparse_engine.methods.resolve import resolve
from sparse_engine.sparsity.sparsify import dense_state_dict
from sparse_engine.training.training_run import TrainingRun

CONFIG = Config(block="4x4", prune_scope="layer")
IMAGES = torch.randn(8, 1, 4, 8, generator=torch.Generator().manual_seed(1))


def network(seed):
    torch.manual_seed(seed)
    layers = (nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
    return nn.Sequential(nn.Flatten(), *layers).eval()


def prune(model, sparsity=0.5):
    replace_modules(model, change_layouts(model, strongest(model, sparsity, CONFIG)))
    return model


def fake(model=None, teacher=None):
    return FakeRun(model or network(0), CONFIG, teacher, [IMAGES, IMAGES + 1])


def weights(model):
    """Return the dense weights of the two layers of a network."""
    state = dense_state_dict(model)
    return [state["1.weight"].clone(), state["4.weight"].clone()]


def equal(first, second):
    return all(a.equal(b) for a, b in zip(first, second, strict=True))


def test_fresh_begins_a_member_of_its_sparsity():
    run = fake()
    StartMember(0.8)(run)
    assert run.asked == [("next member", 0.8)]


def test_escape_replaces_a_share_of_the_blocks_once():
    run = fake()
    Escape(0.3)(run)
    assert run.asked == [("update", 0.3)]
    assert Escape.needs_gradient


def test_a_ticket_is_the_best_state_else_the_present_one_or_one_by_name():
    run = fake()
    SaveTicket()(run)
    assert run.tickets[0]["model"]["1.weight"].equal(run.model[1].weight)
    best, kept = [{"accuracy": 0.9}, {"accuracy": 0.8}], {"accuracy": 0.7}
    run.best, run.kept["average"] = best, kept
    SaveTicket(members=2)(run)
    SaveTicket("average")(run)
    assert run.tickets[1:] == [*best, kept]


def test_a_kept_state_stays_what_it_was():
    run = fake()
    before = weights(run.model)
    SaveState("point")(run)
    with torch.no_grad():
        run.model[1].weight.zero_()
    assert run.kept["point"]["model"]["1.weight"].equal(before[0])
    assert run.kept["point"].keys() == set(SaveState.keeps)


def test_restore_brings_blocks_and_values_back_as_a_new_member():
    run = fake(prune(network(0)))
    before = weights(run.model)
    SaveState("point")(run)
    replace_modules(run.model, {"1": nn.Linear(32, 32)})
    StartFromState("point")(run)
    assert run.asked == [("next member", None)]
    assert equal(weights(run.model), before)


def test_rewind_keeps_the_present_blocks_with_earlier_values():
    run = fake()
    early = weights(run.model)
    SaveState("point")(run)
    with torch.no_grad():
        for layer in (run.model[1], run.model[4]):
            layer.weight.copy_(torch.randn_like(layer.weight))
    prune(run.model)
    present = weights(run.model)
    Rewind("point")(run)
    for now, then, other in zip(weights(run.model), early, present, strict=True):
        assert now.equal(then * (other != 0))
        assert 0 < (now != 0).sum() < now.numel()


@pytest.mark.parametrize(("rule", "shares"), [("caa", (1 / 2, 1 / 3)), ("cima", (0.5, 0.5))])
def test_an_average_is_the_running_mean(rule, shares):
    run, average = fake(), Average("mean", rule, 0.0)
    average(run)
    mean = weights(run.model)
    assert run.kept["mean"]["count"] == 1
    for seed, share in enumerate(shares, 1):
        run.model = network(seed)
        before = copy.deepcopy(run.model.state_dict())
        average(run)
        mean = [torch.lerp(a, b, share) for a, b in zip(mean, weights(run.model), strict=True)]
        assert equal([run.kept["mean"]["model"][f"{n}.weight"] for n in (1, 4)], mean)
        assert equal(before.values(), run.model.state_dict().values())
    assert run.kept["mean"]["count"] == 3
    assert run.kept["mean"].keys() == set(Average.keeps)


def test_an_average_is_pruned_and_has_statistics_of_its_own():
    run, average = fake(prune(network(0))), Average("mean", "caa", 0.5)
    average(run)
    run.model = prune(network(1))
    average(run)
    state, mean = run.kept["mean"]["model"], prune(network(0))
    mean.load_state_dict(state)
    assert model_density(mean) == model_density(run.model) == 0.5
    x = nn.Sequential(*mean[:2])(torch.cat(list(run.training_images())))
    torch.testing.assert_close(state["2.running_mean"], x.mean(0).detach())


def test_prune_keeps_the_strongest_blocks():
    run = fake()
    dense = weights(run.model)
    Prune(0.75)(run)
    assert model_density(run.model) == 0.25
    for now, before in zip(weights(run.model), dense, strict=True):
        assert now.equal(before * (now != 0))
    assert equal(weights(run.model), weights(prune(network(0), 0.75)))


def test_permuting_reorders_the_network_and_kept_states_alike():
    run = fake()
    SaveState("point")(run)
    before, wanted = weights(run.model), run.model(IMAGES)
    PermuteChannels(0.75)(run)
    assert not equal(weights(run.model), before)
    torch.testing.assert_close(run.model(IMAGES), wanted)
    assert equal([run.kept["point"]["model"][f"{n}.weight"] for n in (1, 4)], weights(run.model))


@pytest.mark.parametrize("permute", [False, True])
def test_a_cut_as_the_teachers_has_its_blocks_and_own_values(permute):
    teacher = network(1)
    run = fake(teacher=teacher)
    own, learned = weights(run.model), weights(teacher)
    PruneLikeTeacher(0.75, permute)(run)
    assert equal(weights(teacher), learned)
    assert model_density(run.model) == 0.25
    for now, before in zip(weights(run.model), own, strict=True):
        assert (
            now[now != 0]
            .sort()
            .values.equal(before[torch.isin(before, now[now != 0])].sort().values)
        )
    as_teacher = equal(
        [w != 0 for w in weights(run.model)], [w != 0 for w in weights(prune(teacher, 0.75))]
    )
    assert as_teacher is not permute


def test_every_action_notes_the_sparsity_that_it_leaves():
    kept = {}
    assert StartMember(0.3).sparsity_after(0.9, kept) == 0.3
    assert SaveState("point").sparsity_after(0.3, kept) == 0.3
    for pruning in (Prune(0.8), PruneLikeTeacher(0.8)):
        assert pruning.sparsity_after(0.3, kept) == 0.8
    assert Average("mean", "caa", 0.7).sparsity_after(0.8, kept) == 0.8
    assert kept == {"point": 0.3, "mean": 0.7}
    assert StartFromState("point").sparsity_after(0.8, kept) == 0.3
    for action in (Rewind("point"), Escape(0.5), SaveTicket(), PermuteChannels(0.8)):
        assert action.sparsity_after(0.6, kept) == 0.6


def test_every_action_is_tested_here():
    actions_there = {
        name
        for module in (actions, pruning_actions)
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Action) and kind is not Action
    }
    assert actions_there <= globals().keys()


def test_the_trainer_and_the_fake_are_what_an_action_may_see():
    wanted = {name for name in vars(actions.Run) if not name.startswith("_")}
    wanted |= actions.Run.__annotations__.keys()
    run = fake()
    assert all(hasattr(run, name) for name in wanted)
    config, device = resolve(Config(method="dense", model="mlp")), torch.device("cpu")
    real = TrainingRun(config, [], load_dataset("digits", None), None, device)
    assert wanted <= set(dir(real))
