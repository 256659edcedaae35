"""Runs are made once; failed and stopped ones again."""

import sys
import threading
import time

import pytest
from study_files import digits, study_file

import bench.study.runs
from bench.study.__main__ import main
from bench.study.grid import read_study
from bench.study.runs import Runner, Table
from sparse_engine.errors import InputError, RunFailure

# In place of a training, which takes seconds: it fails in block 16x16 unless `mended` is there.
FAKE = """
import json, pathlib, sys, time
while time.process_time() < 0.05:
    pass
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(given.get("--resume") or given["--out"])
settings = json.loads(pathlib.Path(f"{folder}.json").read_text())
if settings["block"] == "16x16" and not (folder.parent / "mended").exists():
    sys.exit("failed: on purpose")
folder.mkdir(exist_ok=True)
(folder / "config.json").write_text(json.dumps(settings))
if "--resume" not in given:
    (folder / "last.pt").write_text("")
    time.sleep(60 if settings["block"] == "4x4" else 0)
result = {"accuracy": 0.5, "member_accuracy": [0.4, 0.5], "train_seconds": 6.0, "epochs": 2,
          "peak_memory_bytes": 1e6, "device": "cpu"}
(folder / "metrics.json").write_text(json.dumps(result))
"""
# In place of an evaluation: it fails until the training is told to be mended.
FAKE_EVALUATION = """
import json, pathlib, sys
assert sys.argv[2:6] == ["--corruptions", "--severities", "3", "--ood"], sys.argv
given = dict(zip(sys.argv[5::2], sys.argv[6::2]))
folder = pathlib.Path(sys.argv[1])
if not (folder.parent / "mended").exists():
    sys.exit("failed: no such images")
pathlib.Path(given["--out"]).write_text(json.dumps(
    {"corruptions": {"accuracy": 0.4}, "ood": {given["--ood"]: {"entropy": {"auroc": 0.7}}}}))
"""


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(bench.study.runs, "TRAIN", (sys.executable, "-c", FAKE))
    monkeypatch.setattr(bench.study.runs, "EVALUATE", (sys.executable, "-c", FAKE_EVALUATION))


def test_finished_runs_stay_and_failed_ones_are_made_again(tmp_path, fake, capsys):
    path = study_file(tmp_path)
    command = [str(path), "--data-dir", str(digits(tmp_path)), "--out", str(tmp_path / "out")]
    with pytest.raises(RunFailure, match=r"2 runs failed, see .*\.log"):
        main([*command, "--processes", "3"])
    assert {row["block"] for row in Table(tmp_path / "tiny.csv").rows.values()} == {"8x8"}
    assert "exit 1, failed: on purpose" in capsys.readouterr().out
    (tmp_path / "out" / "mended").touch()
    main([*command, "--processes", "3"])
    assert "2 of 4 runs to make" in capsys.readouterr().out
    rows = Table(tmp_path / "tiny.csv").rows
    assert set(rows) == {run.key for run in read_study(path).runs()}
    assert {row["member_accuracy"] for row in rows.values()} == {"0.45"}
    assert {row["seconds_per_epoch"] for row in rows.values()} == {"3"}


def test_a_run_that_is_stopped_is_resumed(tmp_path, fake):
    grids = {"g": {"settings": {"method": "static", "block": "4x4"}, "seeds": 1}}
    study = read_study(study_file(tmp_path, grids=grids))
    runner = Runner(study, Table(tmp_path / "t.csv"), tmp_path / "out", str(tmp_path), "cpu")
    folder = tmp_path / "out" / study.runs()[0].key

    def stop_after_a_checkpoint():
        while not (folder / "last.pt").exists():
            time.sleep(0.02)
        runner.stop()

    watcher = threading.Thread(target=stop_after_a_checkpoint)
    watcher.start()
    runner.run(1)
    watcher.join()
    assert runner.failed == []
    assert runner.table.rows == {}
    Runner(study, runner.table, runner.out, runner.data_dir, "cpu").run(1)
    assert set(runner.table.rows) == {folder.name}
    assert float(runner.table.rows[folder.name]["cpu_seconds"]) > 0.1  # of both processes


def test_tickets_see_corrupted_and_foreign_images(tmp_path, fake, capsys):
    grids = {"g": {"settings": {"method": "static", "block": "8x8"}, "seeds": 1}}
    evaluation = {"severities": "3", "foreign": "digits"}
    path = study_file(tmp_path, grids=grids, evaluation=evaluation)
    command = [str(path), "--data-dir", str(digits(tmp_path)), "--out", str(tmp_path / "out")]
    with pytest.raises(RunFailure, match="1 runs failed"):
        main([*command, "--keep"])
    assert "no such images" in capsys.readouterr().out
    (tmp_path / "out" / "mended").touch()
    main([*command, "--keep"])
    (row,) = Table(tmp_path / "tiny.csv").rows.values()
    assert (row["corrupted_accuracy"], row["foreign_auroc"], row["members"]) == ("0.4", "0.7", "2")
    with pytest.raises(InputError, match="evaluation: 'foreign' is missing"):
        read_study(study_file(tmp_path, evaluation={"severities": "3"}))


def test_a_budget_ends_a_study_without_a_failure(tmp_path, fake):
    grids = {"g": {"settings": {"method": "static", "block": "4x4"}, "seeds": 2}}
    path = study_file(tmp_path, grids=grids)
    command = [str(path), "--data-dir", str(digits(tmp_path)), "--out", str(tmp_path / "out")]
    main([*command, "--budget", "0.5"])
    assert not (tmp_path / "tiny.csv").exists()
    for wrong in ("0", "-1"):
        with pytest.raises(InputError, match="must be above 0"):
            main([*command, "--budget", wrong])
