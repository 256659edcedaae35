"""Channels are ordered so that strong weights share blocks, and networks compute the same."""

import copy
from dataclasses import replace

import pytest
import torch
from pruning import strongest
from torch import nn

from sparse_engine import sparsify
from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.layers.surgery import change_layouts, replace_modules, used_layouts
from sparse_engine.methods.actions import Rewind
from sparse_engine.methods.pruning_actions import PermuteChannels, Prune, PruneLikeTeacher
from sparse_engine.models.build import build_model
from sparse_engine.runs.files import load_file
from sparse_engine.sparsity.channel_permutation.search import find_permutation, permute_for
from sparse_engine.sparsity.distribution import Sparsity
from sparse_engine.sparsity.sparsify import dense_state_dict, plan_model
from sparse_engine.train import main
from sparse_engine.training.trainer import Trainer

RUN = ["--model", "mlp", "--batch-size", "256", "--device", "cpu", "--sparsity", "0.8"]
RUN += ["--block", "16x16", "--permute-channels", "--distribution", "erk"]


def targets_of(model, sparsity, block, **settings):
    plans = plan_model(model, Sparsity(sparsity, "uniform", block, **settings))
    return {plan.name: plan for plan in plans}


def kept(model, targets):
    """Return the share of a model's L1 norm in its best blocks, the mean over layers."""
    shares = []
    for name, target in targets.items():
        weight = dense_state_dict(model)[f"{name}.weight"]
        layout = target.strongest(weight)
        sparse = copy.deepcopy(nn.Sequential(model.get_submodule(name)))
        replace_modules(sparse, change_layouts(sparse, {"0": layout}))
        shares.append(float(sparse[0].weight.detach().abs().sum() / weight.abs().sum()))
    return sum(shares) / len(shares)


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(4, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 40, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(160, 20), nn.ReLU(), nn.Linear(20, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("repeat", [1, 4])
def test_a_shuffled_block_sparse_weight_is_found_again(repeat):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(8, 8, generator=generator) < 0.3
    weight = mask.repeat_interleave(16, 0).repeat_interleave(16, 1) * torch.randn(128, 128)
    wide = weight.repeat_interleave(repeat, 1)
    rows, columns = (torch.randperm(128, generator=generator) for _ in range(2))
    entries = (columns[:, None] * repeat + torch.arange(repeat)).flatten()
    model = nn.Sequential(
        nn.Conv2d(3, 128, 1), nn.AdaptiveAvgPool2d(2 if repeat > 1 else 1), nn.Flatten(),
        nn.Linear(128 * repeat, 128), nn.ReLU(), nn.Linear(128, 4),
    )  # fmt: skip
    model[3].weight.data.copy_(wide[rows][:, entries])
    plan = replace(LayerPlan.full("", wide.shape, (16, 16 * repeat)), active=int(mask.sum()))
    found = permute_for(model, {"3": plan})
    assert found.before["3"] < 0.6
    assert found.after["3"] == pytest.approx(1, abs=1e-5)
    assert kept(model, {"3": plan}) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("taps", ["each", "row", "all"])
@pytest.mark.parametrize("block", [(8, 8), (16, 4), (7, 9)])
def test_the_norm_kept_rises_and_is_what_a_cut_then_keeps(block, taps):
    model = small_model()
    targets = targets_of(model, 0.7, block, taps=taps)
    before, x = kept(model, targets), torch.randn(2, 4, 9, 9)
    y = model(x)
    found = permute_for(model, targets)
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    after = kept(model, targets)
    assert after > before
    for shares, value in ((found.before, before), (found.after, after)):
        assert sum(shares.values()) / len(shares) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("name", ["mlp", "wrn10-1", "resnet8"])
def test_it_never_falls(name, rounds):
    torch.manual_seed(0)
    model = build_model(name, classes=3, channels=1, height=8, width=8)
    targets = targets_of(model, 0.8, (16, 16))
    found = find_permutation(model, targets, rounds)
    assert sum(found.after.values()) >= sum(found.before.values())


def test_what_is_best_already_stays():
    model = small_model()
    targets = targets_of(model, 0.7, (8, 8))
    for _ in range(20):
        permute_for(model, targets)
    weights = dense_state_dict(model)
    assert not permute_for(model, targets).permutation.moves
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())


def test_a_layer_that_was_not_mentioned_stays_sparse():
    model = small_model()
    sparsify(model, 0.5, "uniform", (8, 8), init="random")
    full = dict.fromkeys(("0", "3"))
    found = find_permutation(
        model,
        {
            **full,
            "9": replace(LayerPlan.full("", model[9].weight.shape, (16, 5)), active=3).strongest(
                model[9].weight
            ),
        },
    )
    assert all(not name.startswith("7.") for name in found.permutation.moves)


def test_finer_blocks_are_ordered_for_coarser_ones():
    model = small_model()
    sparsify(model, 0.5, "uniform", (2, 2), init="random")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x = torch.randn(2, 4, 9, 9)
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    y, twin = model(x), copy.deepcopy(model)
    layouts = used_layouts(build_coarse(twin))
    found = permute_for(model, layouts, optimizer)
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    assert sum(found.after.values()) > sum(found.before.values())
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in model.parameters()} == {id(p) for p in optimizer.state}


def build_coarse(model):
    model = copy.deepcopy(model)
    weights = {n: m.to_dense() for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    replace_modules(model, weights)
    sparsify(model, 0.6, "uniform", (8, 8))
    return model


def test_sparsify_permutes_first():
    plain, model = small_model(), small_model()
    x = torch.randn(2, 4, 9, 9)
    y = plain(x)
    reports = [
        sparsify(plain, 0.6, block=(8, 8)),
        sparsify(model, 0.6, block=(8, 8), permute_channels=True),
    ]
    assert len({str([row.density for row in found.rows]) for found in reports}) == 1
    norms = [sum(v.detach().abs().sum() for v in m.parameters()) for m in (plain, model)]
    assert norms[1] > norms[0]
    full = small_model()
    with pytest.warns(DeprecationWarning, match=r"is sparsify\(permute_channels=True\) now"):
        sparsify(full, 0, block=(8, 8), regroup=True)
    torch.testing.assert_close(full(x), y, rtol=1e-4, atol=1e-5)


def test_it_is_refused_where_it_has_no_meaning():
    with pytest.raises(InputError, match="permute_channels is for init='magnitude'"):
        sparsify(small_model(), 0.6, init="random", permute_channels=True)
    model = small_model()
    model[0].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="layer '0' has weights that are not finite"):
        sparsify(model, 0.6, block=(8, 8), permute_channels=True)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    sparsify(model, 0.6, block=(16, 16), permute_channels=True)
    assert isinstance(model[0], SparseLayer)


def watch(monkeypatch, kind):
    """Record the dense weights, the run's and kept ones, before and after an action's calls."""
    seen, call = [], kind.__call__

    def weights(run):
        states = {"network": dense_state_dict(run.network.model)}
        states |= {name: kept["model"] for name, kept in run.kept.items()}
        return {name: {k: v.clone() for k, v in state.items()} for name, state in states.items()}

    def record(self, run):
        before = weights(run)
        call(self, run)
        seen.append((self, before, weights(run)))

    monkeypatch.setattr(kind, "__call__", record)
    return seen


def perceptron(state):
    model = build_model("mlp", classes=10, channels=1, height=8, width=8)
    model.load_state_dict(state)
    return model


def run(out, *flags):
    main([*RUN, "--out", str(out), *flags])


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("lottery", ["--rounds", "2", "--rewind-point", "0.2"]),
        ("ltr", ["--rounds", "2", "--members", "1", "--rewind-point", "0"]),
        ("pf", ["--members", "2"]),
    ],
)
def test_a_run_permutes_once_and_rewinds_in_the_new_order(method, flags, tmp_path, monkeypatch):
    permuted, rewound = watch(monkeypatch, PermuteChannels), watch(monkeypatch, Rewind)
    run(tmp_path / "out", "--method", method, "--epochs", "5", *flags)
    assert len(permuted) == (2 if method == "pf" else 1)
    x = torch.randn(4, 1, 8, 8)
    for action, before, after in permuted:
        assert action.sparsity == 0.8
        assert before.keys() == after.keys()
        for name, state in before.items():
            assert not state["hidden2.weight"].equal(after[name]["hidden2.weight"])
            first, second = perceptron(state)(x), perceptron(after[name])(x)
            torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-5)
    assert len(rewound) == {"lottery": 2, "ltr": 1, "pf": 0}[method]
    for _, _, after in rewound:
        for name, value in permuted[0][2]["rewind point"].items():
            found = after["network"][name]
            assert found.any()
            assert found.equal(value * (found != 0))


def test_a_kd_ticket_is_cut_in_the_order_of_its_teacher(tmp_path, monkeypatch):
    run_flags = ["--model", "mlp", "--device", "cpu", "--batch-size", "256", "--epochs", "2"]
    main([*run_flags, "--method", "dense", "--out", str(tmp_path / "teacher")])
    seen = watch(monkeypatch, PruneLikeTeacher)
    teacher = ["--teacher", str(tmp_path / "teacher")]
    run(tmp_path / "out", "--method", "kd-ticket", "--epochs", "2", *teacher)
    ((_, before, after),) = seen
    model = perceptron(load_file(tmp_path / "teacher/member_1.pt")["model"])
    config = Config(prune_scope="layer", block="16x16")
    order = permute_for(model, strongest(model, 0.8, config)).permutation
    layouts = strongest(model, 0.8, config)
    model.load_state_dict(order.state(before["network"]))
    replace_modules(model, change_layouts(model, layouts))
    for name, value in dense_state_dict(model).items():
        assert value.equal(after["network"][name])


def rename_setting(folder, name, earlier):
    """Let a run's files say a setting by the name that an earlier version gave it."""
    config, checkpoint = folder / "config.json", folder / "last.pt"
    config.write_text(config.read_text().replace(f'"{name}"', f'"{earlier}"'))
    state = torch.load(checkpoint, weights_only=True)
    state["config"][earlier] = state["config"].pop(name)
    torch.save(state, checkpoint)


def test_a_run_that_was_stopped_goes_on_in_the_same_order(tmp_path, monkeypatch):
    flags = ["--method", "lottery", "--rounds", "1", "--epochs", "4", "--rewind-point", "0.1"]
    run(tmp_path / "whole", *flags)
    seen, close = watch(monkeypatch, Prune), Trainer._close_epoch

    def stop_after_the_cut(self, phase, bar):
        close(self, phase, bar)
        if seen:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_close_epoch", stop_after_the_cut)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", *flags)
    monkeypatch.undo()
    rename_setting(tmp_path / "stopped", "permute_channels", "regroup")
    main(["--resume", str(tmp_path / "stopped")])
    whole, stopped = (load_file(tmp_path / f"{n}/member_1.pt") for n in ("whole", "stopped"))
    assert all(value.equal(stopped["model"][name]) for name, value in whole["model"].items())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "rigl"], r"\(kd-ticket, lottery, ltr, pf\), and method 'rigl' does not"),
        (["--method", "sup-tickets"], "and method 'sup-tickets' does not"),
        (["--method", "lottery", "--block", "1x1"], "--block 1x1 has none: leave it out"),
        (
            ["--method", "pf", "--model", "torchvision/vit_b_16", "--dataset", "imagenet"],
            "cannot be permuted",
        ),
    ],
)
def test_the_flag_is_refused_before_anything_is_written(flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        main([*RUN, *flags, "--dry-run"])
    assert not list(tmp_path.iterdir())
