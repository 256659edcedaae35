"""Blocks by layer names: dense layers count in the budget, and all that a run does agrees."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparse_engine import SparseLinear, sparsify
from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs.files import load_file
from sparse_engine.sparsity.distribution import (
    DISTRIBUTIONS,
    Sparsity,
    layer_densities,
)
from sparse_engine.train import main
from sparse_engine.training.trainer import Trainer

SHAPES = {"conv1": (64, 3, 3, 3), "block.conv": (64, 64, 3, 3), "shortcut": (64, 64, 1, 1)}
BLOCKS = {"conv1": "dense", "short*": "1x1", "*": (16, 16)}
FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
MIXED = ["--layer-blocks", '{"classifier": "dense", "hidden2": "4x16"}', "--sparsity", "0.7"]


def kept(plans):
    return sum(p.weights * p.density for p in plans)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.booleans(), min_size=2, max_size=6),
    st.floats(0.01, 0.9),
    st.sampled_from(DISTRIBUTIONS),
)
@settings(deadline=None, max_examples=100)
def test_dense_layers_take_from_the_budget_of_the_others(layers, sparsity, distribution):
    shapes = {name: (8 * (i + 1), 40, 3, 3) for i, name in enumerate(layers)}
    weights = {name: math.prod(shape) for name, shape in shapes.items()}
    dense = [name for name, full in layers.items() if full]
    allowed = (1 - sparsity) * sum(weights.values())
    if sum(weights[name] for name in dense) > allowed:
        with pytest.raises(InputError, match="stay dense"):
            layer_densities(shapes, sparsity, distribution, dense)
        return
    found = layer_densities(shapes, sparsity, distribution, dense)
    assert all(found[name] == 1 for name in dense)
    assert sum(found[n] * weights[n] for n in shapes) == pytest.approx(allowed)
    # What is left has the proportions that it has without dense layers, up to 1.
    others = {name: shape for name, shape in shapes.items() if name not in dense}
    if others:
        share = sum(found[n] * weights[n] for n in others) / sum(weights[n] for n in others)
        alone = layer_densities(others, 1 - min(share, 1), distribution) if share > 0 else {}
        assert {n: found[n] for n in alone} == pytest.approx(alone, abs=1e-9)


def test_the_first_pattern_that_matches_decides():
    plans = {p.name: p for p in Sparsity(0.8, "erk", BLOCKS).plans(SHAPES)}
    assert plans["conv1"].is_dense
    assert plans["shortcut"].block == (1, 1)
    assert plans["block.conv"].block == (16, 16)
    swapped = {"*conv*": "8x8", **BLOCKS}
    assert Sparsity(0.8, "erk", swapped).plans(SHAPES)[0].block == (8, 8)
    budget = 0.2 * sum(math.prod(shape) for shape in SHAPES.values())
    assert budget - 1 <= kept(plans.values()) <= budget + 1e-6


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"shortcuts": "dense", "*": "8x8"}, "'shortcuts': no layer .* did you mean 'shortcut'"),
        ({"conv1": "dense"}, r"no block is given for layer 'block.conv'; add one for '\*'"),
        ({"*conv": "dense", "*": "8x8"}, r"'block.conv', 1 in all\) have 0.8636 .* 0.2 may stay"),
        ({"*": "dense"}, "have 1 of the weights"),
        ({"conv1": "8", "*": "8x8"}, "BOxBC with positive sizes"),
        ({"conv1": 8, "*": "8x8"}, "two positive integers"),
    ],
)
def test_blocks_that_cannot_be(blocks, message):
    with pytest.raises(InputError, match=message):
        Sparsity(0.8, "erk", blocks).plans(SHAPES)


@pytest.mark.parametrize("init", ["random", "magnitude", "scores"])
def test_sparsify_by_names(init):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    scores = {str(i): torch.rand(layer.weight.shape) for i, layer in enumerate(model)}
    first = model[2]
    chosen = scores if init == "scores" else init
    found = sparsify(model, 0.8, block={"2": "dense", "1": (4, 4), "*": (8, 8)}, init=chosen)
    assert model[2] is first
    assert all(type(layer) is SparseLinear for layer in model[:2])
    assert [row.block for row in found.rows] == [(8, 8), (4, 4), None]
    assert found.rows[2].note == ""
    assert found.density == pytest.approx(0.2, abs=64 / 8832)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"classifier": "8"}, r"layer_blocks: 'classifier': block must be BOxBC .* \(or dense\)"),
        ({"classifier": 8}, "layer_blocks: 'classifier': block must be BOxBC"),
        ({"classifier": None}, "found 'None'"),
    ],
)
def test_settings_that_are_no_blocks(blocks, message):
    with pytest.raises(InputError, match=message):
        resolve(Config(layer_blocks=blocks))


def test_ranking_together_is_for_single_weights_everywhere():
    def scope(**settings):
        return resolve(Config(method="pf", **settings)).prune_scope

    assert scope(block="1x1", layer_blocks={"classifier": "dense"}) == "global"
    assert scope(block="1x1", layer_blocks={"classifier": "8x8"}) == "layer"


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "rigl", "--epochs", "4"],
        ["--method", "granet", "--epochs", "4"],
        ["--method", "snfs", "--epochs", "4"],
        ["--method", "static", "--start", "snip", "--epochs", "2"],
        ["--method", "lottery", "--rounds", "1", "--epochs", "4"],
        ["--method", "pf", "--members", "1", "--prune-scope", "global", "--epochs", "2"],
    ],
)
def test_runs_store_what_a_dry_run_says(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main([*FLAGS, *MIXED, *flags, "--dry-run"])
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    main([*FLAGS, *MIXED, *flags, "--out", "out"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    ticket = load_file(Path("out/member_1.pt"), "model")["model"]
    assert ticket["classifier.weight"].shape == (10, 100)
    assert ticket["hidden2.values"].shape[1:] == (16, 4)
    assert ticket["hidden1.values"].shape[1:] == (8, 8)
    # What is ranked or moved over all layers lies in other layers, whose edges are padded.
    free = "granet" in flags or "snfs" in flags or "snip" in flags or "global" in flags
    assert found["parameters"] == pytest.approx(planned["parameters"], rel=0.1 if free else 1e-9)


def test_a_resumed_run_keeps_its_blocks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*FLAGS, *MIXED, "--method", "rigl", "--epochs", "4"]
    main([*flags, "--out", "whole"])
    save = Trainer._save_checkpoint

    def save_and_die(self):
        save(self)
        if self.progress.step == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            main([*flags, "--out", "out"])
    with pytest.raises(InputError, match="layer_blocks"):
        main(["--resume", "out", "--layer-blocks", "{}"])
    main(["--resume", "out"])
    one, other = (load_file(Path(f, "member_1.pt"), "model")["model"] for f in ("whole", "out"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_pattern_that_matches_nothing_is_told_before_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"'clasifier': .* did you mean 'classifier'"):
        main([*FLAGS, "--method", "rigl", "--layer-blocks", '{"clasifier": "dense"}'])
    assert not list(tmp_path.iterdir())
