"""Every file in configs/ plans a run, and those of a paper's table cost what the paper says."""

import json
from pathlib import Path

import pytest

from sparse_engine.methods.registry import METHODS
from sparse_engine.train import main

ROOT = Path(__file__).parents[2] / "configs"
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.json"))


def dry_run(capsys, name, *flags):
    main(["--config", str(ROOT / name), "--dry-run", "--device", "cpu", *flags])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_costs_what_its_paper_says(name, capsys):
    settings = json.loads((ROOT / name).read_text())
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


def test_the_tables_are_there():
    rows = {Path(name).stem for name in FILES if name.startswith("freetickets/")}
    for dataset in ("cifar10", "cifar100"):
        for method in ("dense", "edst-m3", "edst-m7", "dst-m3", "static-m3", "ltr-m3", "pf-m3"):
            assert f"{method}-wrn28-10-{dataset}" in rows
    for method in ("dense", "edst-m2", "edst-m4", "dst-m2", "dense-m4"):
        assert f"{method}-resnet50-imagenet" in rows


@pytest.mark.parametrize("scale", [0.1, 0.5, 2])
def test_a_scale_changes_lengths_and_no_ratio(scale, capsys):
    name = "freetickets/edst-m3-wrn28-10-cifar10.json"
    whole, found = dry_run(capsys, name), dry_run(capsys, name, "--scale", str(scale))
    assert found["epochs"] == round(scale * whole["epochs"])
    # Intervals in proportion keep the number of dense gradients, a larger share of fewer steps.
    assert found["train_flops"] == pytest.approx(scale * whole["train_flops"], rel=0.01)
    assert found["train_flops_ratio"] == pytest.approx(whole["train_flops_ratio"], rel=0.01)
    assert found["test_flops_ratio"] == whole["test_flops_ratio"]
