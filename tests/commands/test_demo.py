"""The demo: what it prints, draws and says, with networks that take no time."""

import json

import pytest
import torch
from torch import nn

from sparse_engine import __main__ as commands
from sparse_engine.commands import demo
from sparse_engine.commands.demo import Known, Timed
from sparse_kernels.timing import CoreWait


def small():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(64, 10))


def test_a_table_of_four_rows_a_picture_and_a_line_of_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "known_networks", lambda: (Known("A", small, 8, 2, 2),) * 3)
    monkeypatch.setattr(demo, "SPARSITIES", (0.5, 0.6, 0.7, 0.8))
    monkeypatch.setattr(demo, "SECONDS", 0.0)
    picture = tmp_path / "picture.png"
    commands.run(["demo", "--device", "cpu", "--out", str(picture)])
    assert picture.stat().st_size > 10_000
    *lines, last = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(("50%", "60%", "70%", "80%"))]
    assert len(rows) == 4
    assert json.loads(last)["core_wait"] == 0  # of one thread
    assert "waited for a core" not in "".join(lines)
    result = json.loads(last)["networks"]["A"]
    ratio = result["seconds_per_step"]["0.8"] / result["dense_seconds_per_step"]
    assert f"{ratio:.2f}" in rows[-1]
    assert "threads, fp32, torch" in lines[0]


def test_times_on_a_busy_machine_are_said_to_be(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "known_networks", lambda: (Known("A", small, 8, 2, 2),))
    monkeypatch.setattr(demo, "SPARSITIES", (0.5, 0.8))
    monkeypatch.setattr(demo, "SECONDS", 0.0)
    monkeypatch.setattr(CoreWait, "share", lambda wait: 0.4)
    demo.main(["--device", "cpu", "--out", str(tmp_path / "a.png")])
    assert "waited for a core in 40% of their time" in capsys.readouterr().out


def timed(*ratios):
    return Timed("A", 2, [1.0, 1.0], dict(zip((0.5, 0.8, 0.9), ([r, r] for r in ratios))), "native")


def test_where_a_step_is_as_fast_as_a_dense_one():
    # 0.5 -> 0.8, 0.8 -> 0.5: one at 0.3.
    assert timed(0.8, 0.5, 0.4).break_even() == pytest.approx(0.3)
    assert timed(1.1, 0.8, 0.7).break_even() == pytest.approx(0.6)
    assert timed(0.5, 0.4, 0.3).break_even() == 0.0
    assert timed(1.2, 1.1, 1.05).break_even() is None


def test_what_is_said_of_it():
    assert "A: faster from about 30% on, sparse layers run on native" in demo.in_words(
        [timed(0.8, 0.5, 0.4)]
    )
    masked = Timed("B", 2, [1.0], {0.5: [1.1], 0.9: [1.1]}, "masked")
    words = demo.in_words([masked, timed(0.5, 0.4, 0.3)])
    assert "B: not faster at any of these, sparse layers run on masked" in words
    assert "A: faster at all of these" in words
    assert "install a C++ compiler" in words


def test_a_picture_that_cannot_be_written_fails_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "known_networks", lambda: (Known("A", small, 8, 2, 2),))
    monkeypatch.setattr(demo, "SPARSITIES", (0.5, 0.8))
    monkeypatch.setattr(demo, "SECONDS", 0.0)
    with pytest.raises(demo.RunFailure, match=r"no-folder/a\.png' cannot be written"):
        demo.main(["--device", "cpu", "--out", str(tmp_path / "no-folder" / "a.png")])
