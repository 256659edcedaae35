"""The papers' configurations: every one plans a run, which costs what its paper says."""

import json
from pathlib import Path

import pytest

from sparse_engine.commands import configs
from sparse_engine.config.named import config_names, find_config
from sparse_engine.methods.registry import METHODS
from sparse_engine.train import main

NAMES = config_names()


def dry_run(capsys, name, *flags):
    main(["--config", name, "--dry-run", "--device", "cpu", *flags])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_costs_what_its_paper_says(name, capsys):
    settings = json.loads(find_config(name).read_text())
    found = dry_run(capsys, name)
    for key in ("method", "model", "dataset"):
        assert found[key] == settings[key]
    model = settings["model"].removeprefix("torchvision/")
    assert f"-{model}-{settings['dataset']}" in name
    assert ("paper" in settings) == (not name.startswith("blocks/"))
    ratio = settings.get("paper", {}).get("train_flops_ratio")
    if ratio is not None:
        # The densities of pruned layers are known after training only; both are planned as ERK.
        tolerance = 0.3 if METHODS[settings["method"]].starts_dense else 0.02
        assert found["train_flops_ratio"] == pytest.approx(ratio, abs=tolerance)
    if "block" in settings and "paper" in settings:
        assert settings["block"] == "1x1"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("freetickets/edst")])
def test_the_papers_edst_has_the_papers_rates(name, capsys):
    main(["--config", name, "--print-config"])
    settings = json.loads(capsys.readouterr().out)
    assert (settings["restart"], settings["drop"]) == (0.1, 0.5)
    assert settings["drop_schedule"] == ("cosine" if "imagenet" in name else "constant")


def test_the_tables_are_there():
    rows = {Path(name).name for name in NAMES if name.startswith("freetickets/")}
    for dataset in ("cifar10", "cifar100"):
        for method in ("dense", "edst-m3", "edst-m7", "dst-m3", "static-m3", "ltr-m3", "pf-m3"):
            assert f"{method}-wrn28-10-{dataset}" in rows
    for method in ("dense", "edst-m2", "edst-m4", "dst-m2", "dense-m4"):
        assert f"{method}-resnet50-imagenet" in rows


@pytest.mark.parametrize("scale", [0.1, 0.5, 2])
def test_a_scale_changes_lengths_and_no_ratio(scale, capsys):
    name = "freetickets/edst-m3-wrn28-10-cifar10"
    whole, found = dry_run(capsys, name), dry_run(capsys, name, "--scale", str(scale))
    assert found["epochs"] == round(scale * whole["epochs"])
    # Intervals in proportion keep the number of dense gradients, a larger share of fewer steps.
    assert found["train_flops"] == pytest.approx(scale * whole["train_flops"], rel=0.01)
    assert found["train_flops_ratio"] == pytest.approx(whole["train_flops_ratio"], rel=0.01)
    assert found["test_flops_ratio"] == whole["test_flops_ratio"]


@pytest.mark.parametrize(
    "words", [("edst-m", "cifar100"), pytest.param((), marks=pytest.mark.slow)]
)
def test_they_are_listed_with_what_a_dry_run_says(words, capsys):
    configs.main(words)
    heading, *rows = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert heading.split()[:5] == ["--config", "members", "epochs", "sparsity", "block"]
    assert [row.split()[0] for row in rows] == [n for n in NAMES if all(w in n for w in words)]
    for row in rows:
        name, members, epochs, sparsity, block, *ratios = row.split()
        found = dry_run(capsys, name)
        assert (members, epochs) == (str(found["members"]), str(found["epochs"]))
        assert (float(sparsity), block) == (
            found["sparsity"],
            found["block"] if found["sparsity"] else "-",
        )
        assert ratios == [f"{found[f'{of}_flops_ratio']:.2f}" for of in ("train", "test")]
