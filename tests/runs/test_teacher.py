"""A teacher gives soft labels; one that cannot is refused before anything is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_engine.errors import InputError
from sparse_engine.methods.losses import CROSS_ENTROPY, Distillation, Given
from sparse_engine.runs.teacher import Teacher
from sparse_engine.train import main

FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
STUDENT = [*FLAGS, "--method", "kd-ticket", "--epochs", "2", "--out", "student"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_distillation_is_the_formula():
    torch.manual_seed(0)
    teacher = Teacher([nn.Linear(6, 5), nn.Linear(6, 5)])
    x, logits, labels = (
        torch.randn(7, 6),
        torch.randn(7, 5, requires_grad=True),
        torch.arange(7) % 5,
    )
    found = Distillation(3.0, 0.7)(logits, labels, Given(x, teacher=teacher.probabilities))
    soft = sum((model(x) / 3).softmax(1) for model in teacher.models) / 2
    ratio = (soft / (logits / 3).softmax(1)).log()
    divergence = 9 * (soft * ratio).sum(1).mean()
    expected = 0.7 * divergence + 0.3 * F.cross_entropy(logits, labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.autograd.grad(found, logits)[0].abs().sum() > 0
    assert not soft.requires_grad
    assert not any(model.training for model in teacher.models)


def test_a_perfect_student_has_nothing_to_learn_from_soft_labels():
    teacher = Teacher([nn.Linear(6, 5)])
    x = torch.randn(7, 6)
    given = Given(x, teacher=teacher.probabilities)
    loss = Distillation(2.0, 1.0)(teacher.models[0](x), torch.zeros(7).long(), given)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_cross_entropy_is_the_mean_over_images_and_the_sum_over_members():
    logits, labels = torch.randn(3, 7, 5), torch.arange(21).view(3, 7) % 5
    found = CROSS_ENTROPY(logits, labels, Given(torch.empty(0), 0.1))
    each = [F.cross_entropy(a, b, label_smoothing=0.1) for a, b in zip(logits, labels)]
    assert found.item() == pytest.approx(sum(each).item(), rel=1e-6)


def write_own(name, classes, size=8):
    arrays = {"images": np.zeros((300, size, size), np.uint8), "labels": np.arange(300) % classes}
    splits = {f"{split}_{k}": v for split in ("train", "test") for k, v in arrays.items()}
    np.savez(f"{name}.npz", **splits)


def teach(*flags):
    main([*FLAGS, "--out", "teacher", "--epochs", "1", *flags])


def other_classes():
    write_own("mine", 4)
    teach("--method", "dense", "--dataset", "mine", "--data-dir", ".")


def other_images():
    write_own("mine", 10, size=12)
    teach("--method", "dense", "--dataset", "mine", "--data-dir", ".")


def other_model():
    teach("--method", "dense", "--model", "wrn10-1")


def sparse():
    teach("--method", "static", "--sparsity", "0.9", "--block", "4x4")


def several_members():
    teach("--method", "mimo")


def without_tickets():
    teach("--method", "dense")
    Path("teacher/member_1.pt").unlink()


def truncated():
    teach("--method", "dense")
    Path("teacher/member_1.pt").write_bytes(b"no")


def changed_data():
    write_own("mine", 10)
    teach("--method", "dense", "--dataset", "mine", "--data-dir", ".")
    write_own("mine", 6)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            other_classes,
            "was trained on mine, whose number of classes is 4; that of digits is 10: use",
        ),
        (
            other_images,
            "was trained on mine, whose image height is 12; that of digits is 8: use a tea",
        ),
        (other_model, "teacher 'teacher' is a wrn10-1, found --model mlp: a ticket is pruned"),
        (sparse, "of its weights, a ticket of sparsity 0.8 needs more: use the run of a dense"),
        (several_members, "is of method 'mimo', whose network is no plain mlp; use the run of a"),
        (without_tickets, "run 'teacher' has no tickets yet"),
        (truncated, "checkpoint 'teacher/member_1.pt' is truncated or not a checkpoint"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_bad_teacher_is_refused_before_anything_is_written(teacher, message, dry):
    teacher()
    with pytest.raises(InputError, match=message):
        main([*STUDENT, "--teacher", "teacher", *dry])
    assert not Path("student").exists()


def test_a_teacher_whose_data_has_changed_is_refused():
    changed_data()
    flags = ["--dataset", "mine", "--data-dir", ".", "--teacher", "teacher"]
    with pytest.raises(InputError, match=r"whose number of classes is 10; that of mine is 6: use"):
        main([*STUDENT, *flags])
    assert not Path("student").exists()


def test_a_dry_run_needs_no_teacher(capsys):
    main([*STUDENT, "--dry-run"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < found["test_flops_ratio"] < 1
    assert not Path("student").exists()
