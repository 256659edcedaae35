"""A run that was cut off and resumed equals one that was not; what cannot be resumed is refused."""

import json
from pathlib import Path

import pytest
import torch
from resumed_runs import (
    Killed,
    assert_equal_runs,
    contents,
    kill_within_an_epoch,
    resume_and_compare,
    rows_of,
    train,
    train_and_kill,
)

from sparse_engine.errors import InputError
from sparse_engine.train import main
from sparse_engine.training.trainer import Trainer
from sparse_kernels.dispatch.cost_model import kept_limits
from sparse_kernels.dispatch.kernel_choices import kernel_choices

# Nine epochs: three of exploration and three tickets of two. Five: phases end within epochs.
PRUNING = ["--rounds", "2", "--rewind-point", "0.2", "--sparsity", "0.6", "--dropout", "0.1"]
STEPS = 5  # an epoch's
EDST = ["--method", "edst", "--sparsity", "0.5", "--epochs", "9"]
pytestmark = pytest.mark.usefixtures("own_folder")


def stopped_run(monkeypatch):
    train_and_kill(monkeypatch, 2, "--method", "rigl", "--epochs", "4")


@pytest.mark.parametrize(
    ("flags", "epochs"),
    [
        (EDST, (1, 3, 4, 5, 9)),
        ([*EDST, "--epochs", "5", "--topology", "set"], (3, 5)),
        ([*EDST, "--select", "validation", "--dropout", "0.2"], (4,)),
        (["--method", "dst-ensemble", "--epochs", "6"], (1, 2, 4, 5)),
        (["--method", "rigl", "--epochs", "6", "--dtype", "bf16"], (1, 4)),
        (
            [
                *("--method", "rigl", "--epochs", "2", "--model", "wrn10-1", "--taps", "row"),
                *("--downsample-rate", "0.5"),
            ],
            (1,),
        ),
        (["--method", "deep-ensemble", "--epochs", "4"], (1, 2)),
        (["--method", "snapshot", "--epochs", "4"], (2, 3)),
        (["--method", "fge", "--epochs", "6"], (5, 6)),
        (["--method", "mc-dropout", "--dropout", "0.2", "--epochs", "3"], (2,)),
        (["--method", "batch-ensemble", "--epochs", "3", "--model", "wrn10-1"], (2,)),
        (["--method", "mimo", "--input-repetition", "0.5", "--epochs", "3"], (2,)),
        (["--method", "treenet", "--epochs", "3"], (2,)),
        (["--method", "snfs", "--epochs", "8"], (1, 5)),
        (["--method", "rigl", "--epochs", "6", "--start", "snip", "--weight-init", "fan-in"], (3,)),
        (["--method", "dst-ensemble", "--epochs", "12", "--start", "grasp"], (2, 5)),
        (["--method", "granet", "--epochs", "8", "--taps", "all"], (2, 4)),
        (["--method", "sup-tickets", "--cycles", "2", "--epochs", "16"], (15, 17)),
        (["--method", "lottery", *PRUNING, "--epochs", "6"], (1, 3, 5)),
        (["--method", "ltr", *PRUNING, "--members", "2", "--epochs", "6"], (2, 7, 4)),
        (["--method", "pf", *PRUNING[4:], "--members", "2", "--epochs", "6"], (2, 3, 5)),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(flags, epochs, monkeypatch):
    """Killed after a checkpoint within an epoch, or before the one at an epoch's end."""
    train("whole", *flags)
    kill_within_an_epoch(monkeypatch, STEPS * (epochs[0] - 1) + 3, *flags)
    resume_and_compare("within")
    for epoch in epochs:
        train_and_kill(monkeypatch, epoch, *flags, before=True)
        resume_and_compare(f"before-{epoch}")


def test_a_resumed_student_has_its_teacher(monkeypatch):
    train("teacher", "--method", "dense", "--epochs", "3")
    flags = ["--method", "kd-ticket", "--epochs", "4", "--rewind-point", "0.3", "--sparsity", "0.5"]
    train("whole", *flags, "--teacher", "teacher")
    train_and_kill(monkeypatch, 3, *flags, "--teacher", "teacher")
    Path("teacher").rename("moved")
    with pytest.raises(InputError, match="'teacher' is not a run folder"):
        main(["--resume", "out"])
    main(["--resume", "out", "--teacher", "moved"])
    assert_equal_runs("whole", "out")


def test_batch_norm_and_averages_of_a_resumed_run(monkeypatch):
    flags = ["--method", "sup-tickets", "--model", "wrn10-1", "--cycles", "2", "--epochs", "3"]
    flags += ["--averaging", "cima", "--prune-scope", "layer", "--batch-size", "128"]
    train("whole", *flags)
    train_and_kill(monkeypatch, 4, *flags)
    main(["--resume", "out"])
    assert_equal_runs("whole", "out")


def test_a_run_may_be_resumed_many_times(monkeypatch):
    train("whole", *EDST)
    train_and_kill(monkeypatch, 1, *EDST)
    save = Trainer._save_checkpoint

    def save_and_die(self):
        save(self)
        if self.progress.step:
            raise Killed

    monkeypatch.setattr(Trainer, "_save_checkpoint", save_and_die)
    for _ in range(8):
        with pytest.raises(Killed):
            main(["--resume", "out"])
    main(["--resume", "out"])
    assert_equal_runs("whole", "out")


def test_a_row_that_was_cut_short_is_written_again(monkeypatch):
    train("whole", "--method", "rigl", "--epochs", "4")
    stopped_run(monkeypatch)
    with Path("out/metrics.csv").open("a") as file:
        file.write("3,1")
    main(["--resume", "out"])
    assert_equal_runs("whole", "out")


def test_a_folder_with_only_a_configuration_starts_from_the_beginning():
    train("whole", *EDST)
    Path("out").mkdir()
    Path("out/config.json").write_text(Path("whole/config.json").read_text())
    main(["--resume", "out"])
    assert_equal_runs("whole", "out")


def test_open_settings_of_a_configuration_are_decided():
    Path("out").mkdir()
    settings = {"method": "rigl", "model": "mlp", "epochs": 2}
    Path("out/config.json").write_text(json.dumps(settings))
    main(["--resume", "out"])
    assert json.loads(Path("out/metrics.json").read_text())["block"] == "16x16"


def test_a_finished_run_prints_its_result_and_is_left_alone(capsys):
    train("out", "--method", "static", "--epochs", "1")
    printed, files = capsys.readouterr().out.splitlines()[-1], contents("out")
    main(["--resume", "out", "--device", "cpu"])
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["run 'out' is finished", printed]
    assert contents("out") == files


def test_paths_and_hardware_may_change(monkeypatch):
    train("whole", "--method", "rigl", "--epochs", "4")
    stopped_run(monkeypatch)
    main(["--resume", "out", "--device", "auto", "--workers", "0", "--data-dir", "."])
    assert_equal_runs("whole", "out")


def test_kernels_stay_those_the_run_began_with(monkeypatch):
    stopped_run(monkeypatch)
    kept, seen, run = json.loads(Path("out/kernels.json").read_text()), [], Trainer.run
    monkeypatch.setitem(kept_limits().entries, "measured since", [0.5])

    def run_and_look(self):
        seen.append(kernel_choices(torch.device("cpu")))
        run(self)

    monkeypatch.setattr(Trainer, "run", run_and_look)
    main(["--resume", "out"])
    assert seen == [kept]
    assert "measured since" in kept_limits().entries
    assert json.loads(Path("out/kernels.json").read_text()) == kept


def test_kernel_choices_of_an_earlier_version_are_read(monkeypatch):
    stopped_run(monkeypatch)
    Path("out/kernels.json").rename("out/picks.json")
    file = kept_limits().path.name
    Path("out/picks.json").write_text(json.dumps({file: {"measured then": [0.5]}}))
    seen, run = [], Trainer.run

    def run_and_look(self):
        seen.append(kept_limits().entries)
        run(self)

    monkeypatch.setattr(Trainer, "run", run_and_look)
    main(["--resume", "out"])
    assert seen == [{"measured then": [0.5]}]
    assert not Path("out/kernels.json").exists()


@pytest.mark.parametrize("text", ["{", "[1]", '{"FILE": {"key": ["x"]}}'])
def test_damaged_kernel_choices_are_refused_and_may_be_deleted(text, monkeypatch):
    stopped_run(monkeypatch)
    file = kept_limits().path.name
    Path("out/kernels.json").write_text(text.replace("FILE", file))
    files = contents("out")
    with pytest.raises(InputError, match=r"out/kernels.json' is (damaged; delete it|not JSON)"):
        main(["--resume", "out"])
    assert contents("out") == files
    Path("out/kernels.json").unlink()
    main(["--resume", "out"])
    assert len(rows_of("out")) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "5"], "run 'out' has epochs 4, found 5: a resumed run keeps"),
        (["--lr", "0.3"], "run 'out' has lr 0.2, found 0.3"),
        (["--method", "set"], "run 'out' has method rigl, found set"),
        (["--seed", "1"], "run 'out' has seed 0, found 1"),
        (["--out", "other"], "run 'out' has out None, found other"),
        (["--config", "other.json"], "run 'out' has block 8x8, found 4x4"),
    ],
)
def test_another_configuration_is_refused(flags, message, monkeypatch):
    stopped_run(monkeypatch)
    Path("other.json").write_text('{"block": "4x4"}')
    files = contents("out")
    with pytest.raises(InputError, match=message):
        main(["--resume", "out", *flags])
    assert contents("out") == files


def test_the_same_configuration_is_accepted(monkeypatch):
    stopped_run(monkeypatch)
    main(["--resume", "out", "--config", "out/config.json", "--epochs", "4"])
    assert len(rows_of("out")) == 4


@pytest.mark.parametrize("epochs", [1, 8])
def test_an_edited_configuration_is_refused(epochs, monkeypatch):
    stopped_run(monkeypatch)
    settings = json.loads(Path("out/config.json").read_text())
    Path("out/config.json").write_text(json.dumps({**settings, "epochs": epochs}))
    files = contents("out")
    with pytest.raises(InputError, match=f"was trained with epochs 4, found {epochs}: a resumed"):
        main(["--resume", "out"])
    assert contents("out") == files
