"""What a run tells while it trains."""

import importlib.util
import io
import json
import re
import sys

import pytest
import torch

from sparse_engine import SparseLinear
from sparse_engine.config.config import FIELDS
from sparse_engine.errors import InputError
from sparse_engine.train import main
from sparse_engine.training import progress
from sparse_engine.training.epoch_log import FOLDER, block_picture, check_log
from sparse_kernels import BlockLayout

SHORT = ["--method", "rigl", "--model", "mlp", "--block", "8x8", "--epochs", "2", "--device", "cpu"]


def test_without_a_terminal_there_is_a_line_an_epoch_and_all_settings(tmp_path, capsys):
    main([*SHORT, "--out", str(tmp_path / "run"), "--skip", "hidden2"])
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line]
    number = r"\d+\.\d+"
    for line, begin, left in zip(lines, ("1/2, step 11", "2/2, step 22"), (r"\d\d:\d\d", "00:00")):
        words = f"train loss {number}, test accuracy {number}, {left} left"
        assert re.fullmatch(f"rigl: epoch {begin}, {words}", line), line
    assert len(lines) == 2
    (settings,) = (line for line in told.out.splitlines() if line.startswith("settings: "))
    assert "lr 0.1" in settings
    assert "skip hidden2" in settings
    ticket = torch.load(tmp_path / "run" / "member_1.pt", weights_only=True)
    state = next(v for v in ticket.values() if isinstance(v, dict) and "hidden1.bias" in v)
    assert "hidden1.values" in state
    assert "hidden2.weight" in state


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self):
        return True


def test_on_a_terminal_the_bar_names_split_and_time_left(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", Terminal())
    main([*SHORT, "--select", "validation", "--out", str(tmp_path / "run")])
    last = sys.stderr.getvalue().strip().splitlines()[-1]
    shown = last.rpartition("\r")[2]
    assert shown.startswith("rigl: 100%|")
    assert re.search(r"\| 00:00 left, train loss [\d.]+, validation accuracy [\d.]+$", shown), shown


def test_members_that_train_apart_count_the_epochs_of_the_whole_run(tmp_path, capsys):
    several = ["--method", "dst-ensemble", "--members", "2", "--parallel", "members"]
    main([*several, *SHORT[2:], "--out", str(tmp_path / "run")])
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert [line.partition(", step")[0] for line in lines] == [
        "member 1: epoch 1/2",
        "member 2: epoch 2/2",
    ]


def test_the_time_left_is_that_of_all_steps_at_their_mean_pace(monkeypatch):
    times = iter((100.0, 103.0, 110.0))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(times))
    left = progress.TimeLeft(10, 40)
    assert left.seconds(11) == 3 * 29
    assert left.seconds(30) == 0.5 * 10


def test_print_config_prints_what_config_reads(tmp_path, capsys):
    main([*SHORT, "--print-config"])
    text = capsys.readouterr().out
    settings = json.loads(text)
    assert settings["epochs"] == 2
    assert settings.keys() <= FIELDS.keys()
    (tmp_path / "own.json").write_text(text)
    main(["--config", str(tmp_path / "own.json"), "--print-config"])
    assert json.loads(capsys.readouterr().out) == settings


def test_a_picture_shows_blocks_as_they_lie():
    ids = torch.tensor([0, 5])
    layer = SparseLinear(64, 32, layout=BlockLayout((32, 64), (16, 16), ids))
    assert (1 - block_picture(layer)).tolist() == [[[1, 0, 0, 0], [0, 1, 0, 0]]]


def test_tensorboard_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tensorboard, .*sparse-engine\[log\]"):
        check_log("tensorboard")
    check_log("none")


@pytest.mark.filterwarnings("ignore")  # of tensorboard itself
def test_tensorboard_has_scalars_and_pictures(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: extra log")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main([*SHORT, "--out", str(tmp_path / "run"), "--log", "tensorboard"])
    events = EventAccumulator(str(tmp_path / "run" / FOLDER))
    events.Reload()
    assert {"accuracy", "train_loss", "density/hidden1"} <= set(events.Tags()["scalars"])
    assert "blocks/hidden1" in events.Tags()["images"]
    assert len(events.Scalars("accuracy")) == 2
