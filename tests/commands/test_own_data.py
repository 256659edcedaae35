"""A user's own pictures and arrays, from training to another test set and to exported files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import WRITERS, members, pixels, write_pictures

from sparse_engine import TicketEnsemble, evaluate, export, load_safetensors, load_torch_export
from sparse_engine.errors import InputError
from sparse_engine.runs.files import load_file
from sparse_engine.train import main as train

NAMES = ("ant", "bee", "cat")
SMALL = ["--model", "mlp", "--block", "8x8", "--epochs", "1", "--device", "cpu"]
STATIC = [*SMALL, "--method", "static", "--workers", "0"]
SIZED = ["--image-size", "8", "--augmentation", "off", "--mean", "0.5", "--std", "0.25"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder of class folders, and a run on them beside it."""
    root = tmp_path_factory.mktemp("own")
    for split, count in (("train", 6), ("val", 3)):
        write_pictures(root / "data" / split, dict.fromkeys(NAMES, count), (20, 30), "jpg")
    data = ["--dataset", f"imagefolder:{root / 'data'}", "--batch-size", "9"]
    train([*STATIC, *SIZED, *data, "--out", str(root / "run")])
    return root


def evaluated(capsys, *arguments):
    capsys.readouterr()
    evaluate.main([*map(str, arguments), "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    return lines, json.loads(lines[-1])


def test_a_run_keeps_how_images_were_made_ready_and_what_classes_are_called(pictures):
    run = pictures / "run"
    config, data = (json.loads((run / f"{name}.json").read_text()) for name in ("config", "data"))
    assert (config["image_size"], config["augmentation"], config["mean"]) == (8, "off", "0.5")
    assert (data["height"], data["mean"], data["class_names"]) == (8, [0.5] * 3, list(NAMES))
    assert load_file(run / "member_1.pt", "class_names")["class_names"] == list(NAMES)
    assert TicketEnsemble.load(run).class_names == NAMES
    assert TicketEnsemble.load(run, resident=False).class_names == NAMES
    with pytest.raises(InputError, match=r"has image_size 8, found 16: a resumed run keeps"):
        train(["--resume", str(run), "--image-size", "16"])


def test_evaluation_prepares_images_as_training_did(pictures, capsys):
    own = json.loads((pictures / "run" / "metrics.json").read_text())
    _, found = evaluated(capsys, pictures / "run")
    assert [found[name] for name in ("accuracy", "nll")] == [own["accuracy"], own["nll"]]
    assert (found["class_names"], found["test_images"]) == (list(NAMES), 9)
    assert found["test_set"] == found["dataset"] == f"imagefolder:{pictures / 'data'}"
    lines, same = evaluated(capsys, pictures / "run", "--test", pictures / "data" / "val")
    assert same["nll"] == own["nll"]
    assert f"test set: {pictures / 'data' / 'val'}, 9 images" in lines
    write_pictures(pictures / "shifted", {"cat": 4}, size=(20, 20))
    _, shifted = evaluated(
        capsys, pictures / "run", "--test", pictures / "shifted", "--ood", "noise"
    )
    assert (shifted["test_images"], shifted["dataset"]) == (4, found["dataset"])
    assert shifted["ood"]["noise"]["images"] == 4
    write_pictures(pictures / "other", {"dog": 1})
    with pytest.raises(InputError, match="has a class 'dog', which the run has not"):
        evaluate.main([str(pictures / "run"), "--test", str(pictures / "other")])


@pytest.mark.parametrize("kind", ["safetensors", "torch-export", "dense"])
def test_exported_files_know_the_classes(kind, pictures):
    path = pictures / f"ticket.{'safetensors' if kind == 'safetensors' else kind}"
    export.main([str(pictures / "run"), "--format", kind, "--out", str(path)])
    if kind == "safetensors":
        assert load_safetensors(path).class_names == TicketEnsemble.load(path).class_names == NAMES
    elif kind == "torch-export":
        assert load_torch_export(path).class_names == NAMES
    else:
        state = torch.load(path, weights_only=True)
        assert state._metadata[""]["class_names"] == list(NAMES)
        stored = sum(t.untyped_storage().nbytes() for t in state.values())
        assert stored == sum(t.numel() * t.element_size() for t in state.values())


def test_a_dry_run_counts_what_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "torchvision.datasets.cifar.check_integrity", lambda path, _: Path(path).is_file()
    )
    WRITERS["cifar10"](tmp_path)
    flags = [*STATIC, "--dataset", "cifar10", "--dry-run", "--batch-size", "20"]
    train([*flags, "--data-dir", str(tmp_path)])
    printed = capsys.readouterr()
    assert "data: 50 training images, 10 test images, 10 classes, 3x32x32 (counted)" in printed.out
    found = json.loads(printed.out.splitlines()[-1])
    counts = ("train_images", "test_images", "classes", "steps_per_epoch")
    assert [found[name] for name in counts] == [50, 10, 10, 2]
    assert printed.err.startswith("warning: an epoch leaves out 10 of 50 training images (20%)")
    train(flags)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["train_images"] == 50000
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"there is no .*; pass --download"):
        train([*flags, "--data-dir", str(tmp_path / "empty")])


def test_what_cannot_be_trained(tmp_path):
    data = ["--dataset", "mine", "--data-dir", str(tmp_path)]
    np.savez(tmp_path / "mine.npz", **members())
    with pytest.raises(InputError, match=r"from 6 training images; --batch-size 6 is the largest"):
        train([*STATIC, *data])
    one = {f"{split}_labels": np.zeros(n, int) for split, n in (("train", 6), ("test", 3))}
    np.savez(tmp_path / "mine.npz", **members(**one))
    with pytest.raises(InputError, match="mine has one class; training needs two or more"):
        train([*STATIC, *data, "--batch-size", "3"])


def test_two_classes_have_every_metric(tmp_path, capsys):
    labels = {f"{split}_labels": np.arange(n) % 2 for split, n in (("train", 6), ("test", 3))}
    np.savez(tmp_path / "two.npz", **members(**labels))
    run = tmp_path / "run"
    data = ["--dataset", "two", "--data-dir", str(tmp_path), "--batch-size", "3"]
    train(
        [
            *SMALL,
            *data,
            "--method",
            "dst-ensemble",
            "--members",
            "2",
            "--topology",
            "static",
            "--epochs",
            "2",
            "--out",
            str(run),
        ]
    )
    flags = ["--ood", "noise", "--attack", "fgsm", "--corruptions", "--severities", "1"]
    _, found = evaluated(capsys, run, *flags)
    numbers = [found[name] for name in ("accuracy", "nll", "ece", "brier", "disagreement", "kl")]
    numbers += [
        v for s in ("confidence", "entropy", "energy") for v in found["ood"]["noise"][s].values()
    ]
    assert np.isfinite(numbers).all()
    assert 0 <= found["ood"]["noise"]["entropy"]["auroc"] <= 1


def test_no_command_advises_a_flag_that_it_lacks(pictures, tmp_path):
    run = str(pictures / "run")
    with pytest.raises(InputError) as error:
        evaluate.main([run, "--test", "cifar10", "--data-dir", str(tmp_path)])
    assert "there is no" in str(error.value)
    flags = set(re.findall(r"(?<!train )--[a-z-]+", str(error.value)))
    assert flags <= {"--data-dir", "--test"}, flags
    settings = Path(run, "config.json")
    before = settings.read_text()
    settings.write_text(json.dumps({**json.loads(before), "epochs": 3, "topology": "rigl"}))
    try:
        for command in (evaluate.main, export.main):
            more = (
                ["--format", "dense", "--out", str(tmp_path / "x")]
                if command is export.main
                else []
            )
            with pytest.raises(InputError, match="setting 'topology' of training rigl"):
                command([run, *more])
    finally:
        settings.write_text(before)


def test_the_data_of_a_resumed_run_may_not_change(tmp_path, capsys):
    data = ["--dataset", "mine", "--data-dir", str(tmp_path), "--batch-size", "3"]
    np.savez(tmp_path / "mine.npz", **members())
    run = tmp_path / "run"
    train([*STATIC, *data, "--out", str(run)])
    (run / "metrics.json").unlink()
    np.savez(tmp_path / "mine.npz", **members(train_images=pixels(6, 3, 8, 10) // 2))
    with pytest.raises(InputError, match=r"has changed since it began: normalisation \(mean\) was"):
        train(["--resume", str(run)])
